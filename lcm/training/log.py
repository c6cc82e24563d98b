"""The record of a run: metrics.jsonl, one JSON object an epoch; from it, TensorBoard's events."""

import contextlib
import json
import shutil
from pathlib import Path

from lcm.files import write_atomically

TAGS = {  # of the columns that TensorBoard shows
    "train_loss": "loss/train_loss",
    "test_loss": "loss/test_loss",
    "train_top1": "accuracy/train_top1",
    "test_top1": "accuracy/test_top1",
    "test_top5": "accuracy/test_top5",
    "lr": "lr",
    "images_per_second": "speed/images_per_second",
    "seconds": "speed/seconds",
}
METRICS = [TAGS[name] for name in ("test_top1", "train_top1", "test_loss", "train_loss")]


class RunLog:
    """Adds epochs to `directory/metrics.jsonl`, first restored to `text`, a checkpoint's record.

    With `tensorboard` the same numbers go to `directory/tensorboard`, which is rewritten when a run
    continues, and `settings`, {key: value}, to its table of hyperparameters (HParams).
    """

    def __init__(self, directory, text="", tensorboard=True, settings=()):
        self.file = Path(directory) / "metrics.jsonl"
        self.text = text
        self.rows = [json.loads(line) for line in text.splitlines()]
        self._settings = dict(settings)
        # A killed run's file may be longer than its checkpoint's record; less is reported.
        present = self.file.read_bytes() if self.file.exists() else b""
        if not present.startswith(text.encode()):
            print(f"warning: {self.file} was damaged or missing; written anew from the checkpoint")
        write_atomically(self.file, text.encode())
        self._folder = Path(directory) / "tensorboard" if tensorboard else None
        self._events = None
        self._shown = 0  # rows whose events are written

    def append(self, row):
        """Add one epoch's row; it is on the disk when this returns."""
        text = self.text + json.dumps(row, allow_nan=False) + "\n"
        write_atomically(self.file, text.encode())
        self.text = text
        self.rows.append(row)
        try:
            self._show()
        except Exception as error:  # a full disk, a tensorboard that cannot be imported
            print(
                f"warning: no TensorBoard events ({type(error).__name__}: {error}); metrics.jsonl "
                "has every number. tensorboard=false switches them off"
            )
            self._folder = None

    def _show(self):
        """Write the events of all rows that have none yet."""
        # on a full disk SummaryWriter's thread would print a traceback
        if self._folder is None or shutil.disk_usage(self.file.parent).free < 2**20:
            return
        if self._events is None:
            self._start_events()
        for row in self.rows[self._shown :]:
            for name in TAGS.keys() & row.keys():
                self._events.add_scalar(TAGS[name], row[name], row["epoch"])
        self._events.flush()
        self._shown = len(self.rows)

    def _start_events(self):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # Events cannot be taken back, and those of a killed run may go beyond its checkpoint. What
        # a new run finds there is not its own.
        if len(self.rows) > 1:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._events = SummaryWriter(str(self._folder))
        # The table takes numbers, strings and truth values only.
        plain = {
            key: json.dumps(value) if isinstance(value, (list, dict)) else value
            for key, value in self._settings.items()
        }
        # not add_hparams, which makes another folder, that TensorBoard would show as another run
        for summary in hparams(plain, dict.fromkeys(METRICS)):
            self._events.file_writer.add_summary(summary)

    def close(self):
        if self._events:
            with contextlib.suppress(OSError):
                self._events.close()
