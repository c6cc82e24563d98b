"""The record of a run: metrics.jsonl, one JSON object an epoch; TensorBoard events are a view made from it."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from lcm.errors import UserError
from lcm.files import unreadable, unwritable, write_atomically


class RunLog:
    """Appends epochs to `directory/metrics.jsonl`, brought back first to the `text` that a checkpoint vouches for.

    With `tensorboard=True` the same numbers go to `directory/tensorboard`, rewritten from the record when a run continues.
    """

    def __init__(self, directory, text="", tensorboard=True, warn=print):
        self.file = Path(directory) / "metrics.jsonl"
        self.text = text
        self.rows = [json.loads(line) for line in text.splitlines()]
        self._restore(warn)
        self._events_folder = Path(directory) / "tensorboard" if tensorboard else None
        self._events, self._shown = None, 0

    def _restore(self, warn):
        """A run that was killed has at most two epochs more than its checkpoint; anything else is named."""
        try:
            present = self.file.read_bytes()
        except FileNotFoundError:
            present = None
        except OSError as error:
            raise unreadable(self.file, error) from error
        if present and not self.text and present.count(b"\n") > 1:
            raise UserError(
                f"{self.file} has {present.count(10)} epochs, but there is no checkpoint to continue from: put checkpoint.pt back, "
                f"or move {self.file.parent} away to start this run anew"
            )
        if present != self.text.encode():
            if self.text and not (present or b"").startswith(self.text.encode()):
                warn(f"warning: {self.file} was damaged or missing; written anew from the checkpoint")
            write_atomically(self.file, self.text.encode())

    def append(self, row):
        """Add one epoch's row; on the disk when this returns."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with open(self.file, "r+b") as stream:
                stream.truncate(len(self.text))  # behind it may be a line that a full disk cut short
                stream.seek(len(self.text))
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(self.file, error) from error
        self.text += line
        self.rows.append(row)
        if self._events_folder:
            try:
                self._show()
            except OSError:  # a view must not end a run; the next epoch writes it anew
                self.close()
                self._events, self._shown = None, 0

    def _show(self):
        """Bring the events up to the record."""
        if shutil.disk_usage(self.file.parent).free < 2**20:  # on a full disk their thread would print a traceback
            return
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self._events_folder, ignore_errors=True)
            self._events = SummaryWriter(str(self._events_folder))
        for row in self.rows[self._shown :]:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    group = "loss" if name.endswith("loss") else "accuracy" if "top" in name else "speed"
                    self._events.add_scalar("lr" if name == "lr" else f"{group}/{name}", value, row["epoch"])
        self._events.flush()
        self._shown = len(self.rows)

    def close(self):
        if self._events:
            with contextlib.suppress(OSError):
                self._events.close()
