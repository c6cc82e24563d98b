"""Checkpoints that survive a kill at any moment: atomic, with a checksum, the one before kept.

`checkpoint.pt` is a file of torch.save with the SHA-256 of its bytes appended; torch.load reads it.
This project reads it with `weights_only=True` alone.
"""

import hashlib
import io
import os
import time

import torch

from lcm.errors import listed, one_line
from lcm.files import unreadable, write_atomically
from lcm.training.out_of_memory import is_out_of_memory

NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
_SEAL = b"\nsha256 "  # + 64 hex digits + "\n"
_SEAL_LENGTH = len(_SEAL) + 64 + 1


class SaveInterval:
    """When a checkpoint is due inside an epoch: "epoch" (never), "500 steps" or "10 minutes"."""

    def __init__(self, every):
        count, _, unit = every.partition(" ")
        self.steps = int(count) if unit.startswith("step") else None
        self.seconds = float(count) * 60 if unit.startswith("minute") else None
        self.last = time.monotonic()

    def due(self, step):
        """Whether to save after a step of the run, counted from 1."""
        if self.seconds and time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            return True
        return bool(self.steps and step % self.steps == 0)


class DamagedCheckpoint(Exception):
    """A checkpoint whose bytes are not those that were written."""


def save(directory, payload):
    """Write `payload` (tensors and plain values) as the newest checkpoint and keep the one before.

    directory: a Path.

    Raises UserError where the disk is full or cannot be written; both old checkpoints are intact.
    """
    # In memory first: the digest is of what torch wrote, whatever the disk makes of it. A zip
    # archive is read from its end backwards, so torch.load passes over the seal.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, io.SEEK_END)
    buffer.write(_SEAL + digest.encode() + b"\n")
    write_atomically(directory / NAME, buffer.getbuffer(), keep=directory / PREVIOUS)


def read(file, config_hash=None):
    """The payload of one checkpoint file.

    Raises DamagedCheckpoint, with the reason, where it is incomplete or another run's; UserError
    where the system cannot read it now, for example on a network folder.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error
    # The seal is checked before torch.load, which therefore never sees a damaged byte.
    body, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        raise DamagedCheckpoint("cut short, or no checkpoint of this program")
    if seal != _SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise DamagedCheckpoint("its checksum does not match")
    try:
        payload = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # the pickle of another program may raise anything
        if is_out_of_memory(error):
            raise
        raise DamagedCheckpoint(f"not readable as weights ({one_line(error)})") from error
    if not isinstance(payload, dict) or config_hash not in (None, payload.get("config_hash")):
        raise DamagedCheckpoint("another run's")
    return payload


def newest(directory, config_hash=None, warn=print, set_aside=False):
    """The payload of a run's newest usable checkpoint; None where the run has no checkpoint yet.

    A damaged one is reported through `warn`, and the one before is used. `set_aside`, for the run's
    owner, renames the damaged one, so that the next `save` does not keep it instead of the good
    one. Raises UserError where there are checkpoints but none is usable; nothing is deleted.
    """
    problems = []
    for file in (directory / NAME, directory / PREVIOUS):
        if not file.exists():
            continue
        try:
            payload = read(file, config_hash)
        except DamagedCheckpoint as damage:
            problems.append(f"{file}: {damage}")
            continue
        if problems:
            warn(f"warning: damaged checkpoint ({problems[0]}); continuing from {file.name}")
        # Here the damaged one is NAME: it is read first.
        if problems and set_aside:
            os.replace(directory / NAME, directory / DAMAGED)
        return payload
    # Not None, for which the caller would start anew, over files that can perhaps be repaired.
    if problems:
        problems.append(f"nothing was deleted; move {directory} away to start this run anew")
        raise listed("no usable checkpoint:", problems)
    return None
