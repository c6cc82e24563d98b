"""One run of a sweep in a launcher's process: its log, how it ended.

A run of a sweep never raises: what went wrong with it is in its Outcome and its log.txt.
"""

import contextlib
import io
import os
import socket
import sys
import traceback
from typing import NamedTuple

import torch

from lcm.errors import NotFinite, OwnedElsewhere, Stopped, UserError, in_words
from lcm.runs.directory import now, run_directory
from lcm.runs.status import LOG_ERROR, LOG_PART, status_of
from lcm.training.device import release_memory
from lcm.training.signals import STOP


class Outcome(NamedTuple):
    """How a run of a sweep ended: finished, failed, owned or stopped (by `signal`)."""

    state: str
    message: str | None = None
    signal: str | None = None


def run_one(train, config):
    """Train the run of a resolved config with `train(config)`; returns an Outcome, whatever
    happens. What it prints goes to its log.txt, too.
    """
    directory = run_directory(config)
    # `train` asks again, under the lock; here to leave the log of others alone
    state = status_of(directory).state
    if state in ("live", "finished"):
        return Outcome("owned" if state == "live" else "finished")
    try:
        with Log(directory / "log.txt") as log:
            outcome = _train(train, config, log)
    except (Stopped, Exception) as error:  # a signal before it began, or a log without a place
        outcome = outcome_of(error)
    if config["compile"]:  # or the next networks reach the limit of recompilations
        torch.compiler.reset()
    release_memory()
    return outcome


def _train(train, config, log):
    """The Outcome of train(config), whose log says at its end why it ended."""
    try:
        with contextlib.redirect_stdout(log):
            train(config)
        return Outcome("finished")
    except (Stopped, Exception) as error:
        outcome = outcome_of(error)
        if outcome.state == "stopped":
            log.write(f"\nstopped by {outcome.signal}: {outcome.message}\n")
        elif outcome.state == "failed":
            log.write("" if isinstance(error, (UserError, NotFinite)) else traceback.format_exc())
            log.write(f"{LOG_ERROR}{outcome.message}\n")
        return outcome


def outcome_of(error):
    """The Outcome of a run that an exception has ended."""
    error = STOP.behind(error)
    if isinstance(error, Stopped):
        return Outcome("stopped", error.what, error.signal)
    return Outcome("owned" if isinstance(error, OwnedElsewhere) else "failed", in_words(error))


class Log(io.TextIOBase):
    """A new part of a run's log.txt, and the terminal beside it."""

    def __init__(self, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(file, "a")  # noqa: SIM115  closed by `close`
        self.file.write(f"{LOG_PART}{now()}, process {os.getpid()} on {socket.gethostname()}\n")
        self.terminal = sys.stdout

    def write(self, text):
        for stream in (self.file, self.terminal):
            stream.write(text)
            stream.flush()
        return len(text)

    def close(self):
        self.file.close()
