"""The record of a run: metrics.jsonl, one JSON object an epoch. TensorBoard's events are made from it."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from lcm.errors import UserError
from lcm.files import unreadable, unwritable, write_atomically

METRICS = ("accuracy/test_top1", "accuracy/train_top1", "loss/test_loss", "loss/train_loss")


class RunLog:
    """Appends epochs to `directory/metrics.jsonl`, after restoring the file to `text`, the record that a checkpoint holds.

    With `tensorboard=True` the same numbers go to `directory/tensorboard`, which is rewritten when a run
    continues, and `settings`, {key: value}, to its table of hyperparameters (HParams).
    """

    def __init__(self, directory, text="", tensorboard=True, settings=None, warn=print):
        self.file = Path(directory) / "metrics.jsonl"
        self.text = text
        self.rows = [json.loads(line) for line in text.splitlines()]
        self._warn = warn
        self._settings = settings or {}
        self._restore(warn)
        self._events_folder = Path(directory) / "tensorboard" if tensorboard else None
        self._events, self._shown = None, 0

    def _restore(self, warn):
        """A killed run's file may be longer than its checkpoint's record; any other difference is reported."""
        try:
            present = self.file.read_bytes()
        except FileNotFoundError:
            present = None
        except OSError as error:
            raise unreadable(self.file, error) from error
        if present and not self.text and (epochs := present.count(b"\n")) > 1:
            raise UserError(
                f"{self.file} has {epochs} epochs, but there is no checkpoint to continue from: put checkpoint.pt back, "
                f"or move {self.file.parent} away to start this run anew"
            )
        if present != self.text.encode():
            if self.text and not (present or b"").startswith(self.text.encode()):
                warn(
                    f"warning: {self.file} was damaged or missing; written anew from the checkpoint"
                )
            write_atomically(self.file, self.text.encode())

    def append(self, row):
        """Add one epoch's row; it is on the disk when this returns."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with open(self.file, "r+b") as stream:
                stream.truncate(
                    len(self.text)
                )  # a full disk may have left a part of a line after it
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
            except OSError:  # does not end the run; after the next epoch they are rewritten
                self.close()
                self._events = None
                self._shown = 0
            except Exception as error:  # a tensorboard that cannot be imported, most often
                self._warn(
                    f"warning: no TensorBoard events ({type(error).__name__}: {error}); metrics.jsonl "
                    "has every number. tensorboard=false switches them off"
                )
                self._events_folder = None

    def _show(self):
        """Write the events of all rows that have none yet."""
        if (
            shutil.disk_usage(self.file.parent).free < 2**20
        ):  # on a full disk SummaryWriter's thread prints a traceback
            return
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            shutil.rmtree(self._events_folder, ignore_errors=True)
            self._events = SummaryWriter(str(self._events_folder))
            plain = {
                key: json.dumps(value) if isinstance(value, (list, dict)) else value
                for key, value in self._settings.items()
            }
            # not add_hparams, which makes another folder, that TensorBoard would show as another run
            for summary in hparams(plain, dict.fromkeys(METRICS)):
                self._events.file_writer.add_summary(summary)
        for row in self.rows[self._shown :]:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    group = (
                        "loss"
                        if name.endswith("loss")
                        else "accuracy"
                        if "top" in name
                        else "speed"
                    )
                    self._events.add_scalar(
                        "lr" if name == "lr" else f"{group}/{name}", value, row["epoch"]
                    )
        self._events.flush()
        self._shown = len(self.rows)

    def close(self):
        if self._events:
            with contextlib.suppress(OSError):
                self._events.close()
