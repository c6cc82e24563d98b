"""The record of a run: metrics.jsonl, one JSON object an epoch; TensorBoard events are a view made from it."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from lcm.run import unwritable


class RunLog:
    """Appends epochs to `directory/metrics.jsonl`, cut back first to the `length` bytes that a checkpoint vouches for.

    With `tensorboard=True` the same numbers go to `directory/tensorboard`, rewritten from the record when a run continues.
    """

    def __init__(self, directory, length=0, tensorboard=True):
        self.file = Path(directory) / "metrics.jsonl"
        self.length = length
        self._events_folder = Path(directory) / "tensorboard" if tensorboard else None
        self._events = None
        try:
            with open(self.file, "a+b") as stream:
                stream.truncate(length)
        except OSError as error:
            raise unwritable(self.file, error) from error
        self.rows = [json.loads(line) for line in self.file.read_text().splitlines()]
        if self._events_folder:
            shutil.rmtree(self._events_folder, ignore_errors=True)

    def append(self, row):
        """Add one epoch's row; on the disk when this returns."""
        line = (json.dumps(row) + "\n").encode()
        try:
            with open(self.file, "r+b") as stream:
                stream.truncate(self.length)
                stream.seek(self.length)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(self.file, error) from error
        self.length += len(line)
        self.rows.append(row)
        if self._events_folder:
            with contextlib.suppress(OSError):  # a view: a full disk must not end a run over it
                self._show(self.rows if self._events is None else [row])

    def _show(self, rows):
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._events_folder))
        for row in rows:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    group = "loss" if name.endswith("loss") else "accuracy" if "top" in name else "speed"
                    self._events.add_scalar("lr" if name == "lr" else f"{group}/{name}", value, row["epoch"])
        self._events.flush()

    def close(self):
        if self._events:
            self._events.close()
