"""Checkpoints that survive a kill at any moment: one file, a checksum, the one before kept.

`checkpoint.pt` is an ordinary torch file (`torch.load` reads it) with the SHA-256 of its bytes after its end.
Only `weights_only=True` ever reads it.
"""

import contextlib
import hashlib
import io
import os
from pathlib import Path

import torch

from lcm.errors import UserError
from lcm.files import sync_directory, unwritable

NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
_SEAL = b"\nsha256 "  # + 64 hex digits + "\n"
_SEAL_LENGTH = len(_SEAL) + 64 + 1


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def save(directory, payload):
    """Write `payload` (tensors and plain values) as the newest checkpoint and keep the one before.

    Raises UserError where the disk is full or cannot be written; both old checkpoints are intact then.
    """
    directory = Path(directory)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    data = buffer.getbuffer()
    temporary = directory / f".{NAME}.tmp"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.write(_SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        if (directory / NAME).exists():
            _keep(directory / NAME, directory / PREVIOUS)
        os.replace(temporary, directory / NAME)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(directory / NAME, error) from error
    sync_directory(directory)


def _keep(newest, previous):
    """Give the newest checkpoint a second name, so that there is a whole one under its first name at every moment."""
    link = previous.with_name(f".{previous.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(newest, link)
    except OSError:  # a file system without hard links
        os.replace(newest, previous)
    else:
        os.replace(link, previous)


def read(file, config_hash=None):
    """The payload of one checkpoint file. Raises Damaged, with the reason, where it is not whole or another run's."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise Damaged(error.strerror) from error
    body, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if not data:
        raise Damaged("empty")
    if not seal.startswith(_SEAL):
        raise Damaged("cut short, or no checkpoint of this program")
    if seal != _SEAL + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise Damaged("its checksum does not match")
    try:
        payload = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # whole, so of another program: what its pickle raises is anybody's guess
        raise Damaged(f"not readable as weights ({(str(error) or repr(error)).splitlines()[0]})") from error
    if config_hash is not None and (not isinstance(payload, dict) or payload.get("config_hash") != config_hash):
        raise Damaged("another run's")
    return payload


def newest(directory, config_hash=None, warn=print, set_aside=False):
    """The newest usable checkpoint of a run, None where the run has none yet.

    A damaged one is named through `warn` and the one before is taken; `set_aside`, for the run's owner, renames the damaged one,
    so that the next `save` does not keep it in the place of the good one. Raises UserError where there are some but none is
    usable; nothing is deleted.
    """
    faults = []
    for name in (NAME, PREVIOUS):
        file = Path(directory) / name
        if not file.exists():
            continue
        try:
            payload = read(file, config_hash)
        except Damaged as damage:
            faults.append(f"{file}: {damage}")
            continue
        for fault in faults:
            warn(f"warning: damaged checkpoint ({fault}); continuing from {file.name}")
        if faults and set_aside:
            try:
                os.replace(Path(directory) / NAME, Path(directory) / DAMAGED)
            except OSError as error:
                raise unwritable(Path(directory) / DAMAGED, error) from error
        return payload
    if faults:
        raise UserError(
            "no usable checkpoint:\n  "
            + "\n  ".join(faults)
            + f"\nnothing was deleted; move {directory} away to start this run anew"
        )
    return None


def load_model_weights(directory):
    """The network's state_dict from a run's newest usable checkpoint, on the CPU.

    Raises UserError where the directory has no checkpoint or no usable one.
    """
    payload = newest(directory)
    if payload is None:
        raise UserError(f"{directory} has no {NAME}: train the run first")
    return payload["model"]
