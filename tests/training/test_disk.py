"""A disk that fills up, a file that must not grow: one message, nothing lost, continued exactly."""

import errno
import os

import pytest
from tiny import directory_of, place_of, state_of

FULL = "what was saved before is intact; make room and run the same command again\n"


def full_at(name, call):
    """A `prepare`: no space is left from the time when a file is written for the `call`-th time."""
    fsync, calls = os.fsync, []

    def refuse(descriptor):
        calls.extend([1] * (os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/.{name}.tmp")))
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return lambda: setattr(os, "fsync", refuse)


@pytest.mark.parametrize(
    "name, call, place",
    [("metrics.jsonl", 3, (2, 0)), ("checkpoint.pt", 2, (2, 0)), ("run.json", 2, (4, 0))],
)
def test_full_while_it_trains(tiny, ends, finishes_exactly, tmp_path, name, call, place):
    config = tiny(f"runs={tmp_path}")
    ended = ends(config, 2, f"/{name}: {FULL}", prepare=full_at(name, call))
    assert ended.err.startswith("error: no space left while writing ")
    assert ended.err.count("\n") == 1 and state_of(config)["state"] in ("running", "stopped")
    ends(config, 2, FULL, prepare=full_at("run.json", 1))  # still full
    assert place_of(config) == place
    finishes_exactly(config, f"continuing  from epoch {place[0]}")
    assert not [name for name in os.listdir(directory_of(config)) if name.endswith(".tmp")]
