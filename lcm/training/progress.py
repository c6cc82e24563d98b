"""What a user sees while a run trains: a bar on a terminal, one line an epoch in a log."""

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

    Estimates come from the steps of this process, so that they hold for a run that is continued anywhere.

    `style`: "bar", "lines", or "auto" (a bar where stderr is a terminal).
    """

    def __init__(self, style, epochs, steps, batch_size):
        self.bar_wanted = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.started, self.bar = time.monotonic(), None
        self._made = 0  # steps made by this process
        self._estimated, self._shown = False, 0.0

    def step(self, epoch, done, totals):
        """After step `done` of an epoch; `totals` (loss, hits, images) where reading them costs nothing, else None."""
        self._made += 1
        now = time.monotonic()
        if self._made == 1:  # the first step warms up
            self._warm = now
        elif not self._estimated and (now - self._warm > 10 or self._made > self.steps // 2):
            self._estimated = True
            left = (now - self._warm) / (self._made - 1) * ((self.epochs - epoch + 1) * self.steps - done)
            self.say(f"estimated time: {clock(left)} for training, and evaluation on top")
        if not self.bar_wanted or (now - self._shown < 0.1 and done < self.steps):
            return
        self._shown = now
        if self.bar is None:
            from tqdm import tqdm

            title = f"epoch {epoch}/{self.epochs}"
            self.bar = tqdm(total=self.steps, initial=done, desc=title, unit="step", leave=False)
            self._from = (now, done)
        self.bar.n = done
        speed = (done - self._from[1]) * self.batch_size / (now - self._from[0]) if now > self._from[0] else 0
        shown = f"{speed:.0f} images/s"
        if totals is not None and totals[2]:
            shown = f"loss {totals[0] / totals[2]:.4f}, top-1 {100 * totals[1] / totals[2]:.2f} %, {shown}"
        self.bar.set_postfix_str(shown)

    def epoch(self, row):
        """After an epoch: one line."""
        self.clear()
        left = (time.monotonic() - self.started) / max(self._made, 1) * (self.epochs - row["epoch"]) * self.steps
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
