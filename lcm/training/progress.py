"""The display of a run's progress: a bar on a terminal, one line an epoch in a log."""

import sys
import time

EVERY = 600  # seconds between the lines of one long epoch


def clock(seconds):
    """90 -> "1 min 30 s", 7300 -> "2 h 2 min"."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


class Progress:
    """Shows steps and epochs of a run, and what is left of it.

    Steps and evaluations are timed apart, in this process alone and without its first step, which
    warms up: an estimate holds for a run that is continued at any place.

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
        self._mark = self._said = None  # the last step's time, and the last line's
        self._steps = self._evaluations = 0  # those that were timed
        self._stepping = self._evaluating = 0.0  # their seconds
        self._estimated = False

    def step(self, epoch, done, sums=None):
        """Call after step `done` of an epoch; `sums`: the Sums of training, unless it would wait."""
        now = time.monotonic()
        if self._mark is None:
            self._said = now
        elif done > 1:  # the first step of an epoch follows an evaluation
            self._steps += 1
            self._stepping += now - self._mark
        self._mark = now
        if not self._estimated and (self._stepping > 10 or self._steps > len(self.batches) // 2):
            self._estimated = True
            left = clock(self._left(epoch, done))
            self.say(f"estimated time: {left} for training, and evaluation on top")
        if self.bar_wanted:
            self._show_bar(epoch, done, sums)
        elif now - self._said > EVERY:
            self.say(f"epoch {epoch:>3}/{self.epochs}  step {done}/{len(self.batches)}")

    def _left(self, epoch, done):
        """Seconds until the end of the run, after `done` steps of an epoch."""
        steps = (self.epochs - epoch + 1) * len(self.batches) - done
        evaluation = self._evaluating / max(self._evaluations, 1)  # 0 where none was timed yet
        return steps * self._stepping / self._steps + (self.epochs - epoch) * evaluation

    def _show_bar(self, epoch, done, sums):
        images = min(done * self.batches.batch_size, self.batches.images)
        if self.bar is None:
            from tqdm import tqdm

            shape = {"total": self.batches.images, "initial": images, "unit": "image"}
            self.bar = tqdm(desc=f"epoch {epoch}/{self.epochs}", leave=False, **shape)
        if sums is not None:
            means = sums.means("train")
            words = f"loss {means['train_loss']:.4f}, top-1 {means['train_top1']:.2f} %"
            self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(images - self.bar.n)

    def epoch(self, row):
        """Call after an epoch and its evaluation, with its row of metrics: prints one line."""
        if self._mark is not None:
            self._evaluations += 1
            self._evaluating += time.monotonic() - self._mark
        left = self._left(row["epoch"], len(self.batches)) if self._steps else 0
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
        self._said = time.monotonic()

    def clear(self):
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
