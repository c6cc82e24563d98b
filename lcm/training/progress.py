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
    """Shows steps and epochs of a run of `epochs` epochs, `images` images each, from epoch `first` on.

    `style`: "bar", "lines", or "auto" (a bar where stderr is a terminal).
    """

    def __init__(self, style, epochs, batch_size, first=1):
        self.bar_wanted = style == "bar" or (style == "auto" and sys.stderr.isatty())
        self.epochs, self.batch_size = epochs, batch_size
        self.first, self.started = first, time.monotonic()
        self.bar = None
        self._steps = 0
        self._estimated = False
        self._shown = 0.0

    def step(self, epoch, done, steps, totals):
        """After a step; `totals` (loss, hits, images) where reading them costs nothing, else None."""
        self._steps += 1
        now = time.monotonic()
        if self._steps == 1:  # the first step warms up, and may compile
            self._warm = now
        elif not self._estimated and (now - self._warm > 10 or self._steps > steps // 2):
            self._estimated = True
            left = (now - self._warm) / (self._steps - 1) * ((self.epochs - epoch + 1) * steps - done)
            self.say(f"estimated time: {clock(left)} for training, and evaluation on top")
        if not self.bar_wanted or (now - self._shown < 0.1 and done < steps):
            return
        self._shown = now
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}/{self.epochs}", unit="step", leave=False)
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
        done = row["epoch"] - self.first + 1
        left = (time.monotonic() - self.started) / done * (self.epochs - row["epoch"])
        self.say(
            f"epoch {row['epoch']:>3}/{self.epochs}  lr {row['lr']:.4g}  train loss {row['train_loss']:.4f}  "
            f"top-1 {row['train_top1']:.2f}  test loss {row['test_loss']:.4f}  top-1 {row['test_top1']:.2f}  "
            f"top-5 {row['test_top5']:.2f}  {row['images_per_second']:.0f} images/s"
            + (f"  {clock(left)} left" if left >= 1 else "")
        )

    def say(self, line):
        if self.bar is not None:
            self.bar.clear()
        print(line, flush=True)

    def clear(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
