"""The display of a run's progress: a bar on a terminal, one line per epoch in a log."""

import sys
import time

FIRST, EVERY = 10, 600  # seconds before the first line of a long epoch, and between the others


def clock(seconds):
    """90 -> "1 min 30 s", 7300 -> "2 h 1 min"."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


class Progress:
    """Shows steps and epochs of a run, and what is left of it.

    What is left is estimated from the time since step 1 of the first epoch that this process trains
    from its beginning: a process's first step warms up, and after a part of an epoch comes a whole
    evaluation.

    Args:
        style: "bar", "lines", or "auto" (a bar where stderr is a terminal).
        epochs: of the run.
        batches: those of training: len() is the steps of an epoch, `images` its images.
    """

    def __init__(self, style, epochs, batches):
        self.bar_wanted = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self.epochs = epochs
        self.batches = batches
        self.bar = None
        self._began = None  # the time from which steps are timed
        self._timed = 0  # steps
        self._next = None  # the time of the next line

    def step(self, epoch, done, sums=None):
        """Call after step `done` of an epoch; `sums`: those of training, None where to read them
        would mean to wait for a GPU.
        """
        now = time.monotonic()
        if self._began is not None:
            self._timed += 1
        elif done == 1:
            self._began = now
        self._next = self._next or now + FIRST
        if self.bar_wanted:
            self._show_bar(epoch, done, sums)
        elif now > self._next:
            left = f"  {clock(self._left(epoch, done))} left" if self._timed else ""
            self.say(f"epoch {epoch:>3}/{self.epochs}  step {done}/{len(self.batches)}{left}")

    def _left(self, epoch, done):
        """Seconds until the end of the run, after `done` steps of an epoch."""
        # Evaluations and checkpoints are in the measured time, and so in a step's mean.
        steps = (self.epochs - epoch + 1) * len(self.batches) - done
        return steps * (time.monotonic() - self._began) / self._timed

    def _show_bar(self, epoch, done, sums):
        images = min(done * self.batches.batch_size, self.batches.images)
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                desc=f"epoch {epoch}/{self.epochs}",
                total=self.batches.images,
                initial=images,
                unit="image",
                leave=False,
            )
        if sums is not None:
            means = sums.means("train")
            words = f"loss {means['train_loss']:.4f}, top-1 {means['train_top1']:.2f} %"
            self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(images - self.bar.n)

    def epoch(self, row):
        """Call after an epoch and its evaluation, with its row of metrics: prints one line."""
        left = self._left(row["epoch"], len(self.batches)) if self._timed else 0
        speed = f"  {row['images_per_second']:.0f} images/s" if row["images_per_second"] else ""
        self.say(
            f"epoch {row['epoch']:>3}/{self.epochs}  lr {row['lr']:.4g}  "
            f"train loss {row['train_loss']:.4f}  top-1 {row['train_top1']:.2f}  "
            f"test loss {row['test_loss']:.4f}  top-1 {row['test_top1']:.2f}  "
            f"top-5 {row['test_top5']:.2f}{speed}" + (f"  {clock(left)} left" if left >= 1 else "")
        )

    def say(self, line):
        """Print a line in place of the bar, which the next step shows again."""
        self.clear()
        print(line, flush=True)
        self._next = time.monotonic() + EVERY

    def clear(self):
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
