"""The display of a run's progress: a bar on a terminal, one line an epoch in a log."""

import sys
import time


def clock(seconds):
    """90 -> "1 min 30 s", 7300 -> "2 h 2 min"."""
    seconds = round(seconds)
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


class Progress:
    """Shows steps and epochs of a run of `epochs` epochs of `steps` steps.

    Estimates use the steps of this process alone, so that they hold for a run continued at any step.

    `style`: "bar", "lines", or "auto" (a bar where stderr is a terminal).
    """

    def __init__(self, style, epochs, steps, batch_size):
        self.bar_wanted = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.started, self.bar = time.monotonic(), None
        self._made, self._estimated = (
            0,
            False,
        )  # steps of this process; whether the first estimate was shown

    def step(self, epoch, done, totals):
        """Call after step `done` of an epoch; `totals`: tensor (loss, hits, images), None where reading it would wait for a GPU."""
        self._made += 1
        now = time.monotonic()
        if self._made == 1:  # the first step warms up
            self._warm = now
        elif not self._estimated and (now - self._warm > 10 or self._made > self.steps // 2):
            self._estimated = True
            left = (
                (now - self._warm)
                / (self._made - 1)
                * ((self.epochs - epoch + 1) * self.steps - done)
            )
            self.say(f"estimated time: {clock(left)} for training, and evaluation on top")
        if not self.bar_wanted:
            return
        if self.bar is None:
            from tqdm import tqdm

            title, scale = (
                f"epoch {epoch}/{self.epochs}",
                self.batch_size,
            )  # shown are images, and images/s
            self.bar = tqdm(
                total=self.steps,
                initial=done,
                desc=title,
                unit="image",
                unit_scale=scale,
                leave=False,
            )
        if totals is not None:
            loss, hits, images = totals.tolist()
            self.bar.set_postfix_str(
                f"loss {loss / images:.4f}, top-1 {100 * hits / images:.2f} %", refresh=False
            )
        self.bar.update(done - self.bar.n)

    def epoch(self, row):
        """Call after an epoch, with its row of metrics: prints one line."""
        self.clear()
        left = (
            (time.monotonic() - self.started)
            / max(self._made, 1)
            * (self.epochs - row["epoch"])
            * self.steps
        )
        self.say(
            f"epoch {row['epoch']:>3}/{self.epochs}  lr {row['lr']:.4g}  train loss {row['train_loss']:.4f}  "
            f"top-1 {row['train_top1']:.2f}  test loss {row['test_loss']:.4f}  top-1 {row['test_top1']:.2f}  "
            f"top-5 {row['test_top5']:.2f}  {row['images_per_second']:.0f} images/s"
            + (f"  {clock(left)} left" if self._made and left >= 1 else "")
        )

    def say(self, line):
        if self.bar is not None:
            self.bar.clear()
        print(line, flush=True)

    def clear(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
