"""One run of a sweep in a launcher's process: its log, how it ended.

A run of a sweep never raises: what went wrong with it is in its Outcome and its log.txt.
"""

import contextlib
import gc
import io
import os
import socket
import sys
import traceback
from typing import NamedTuple

import torch

from lcm.errors import EXPECTED, OwnedElsewhere, Stopped, in_words
from lcm.runs.directory import now, run_directory
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
    try:
        with Log(run_directory(config) / "log.txt") as log, contextlib.redirect_stdout(log):
            # The sweep has set aside what it trains anew; a job that comes late must not.
            outcome = _train(train, config | {"rerun": False})
    except (Stopped, OSError) as error:  # a signal before it began, or a log without a place
        outcome = outcome_of(error)
    if config["compile"]:  # or the next networks reach the limit of recompilations
        torch.compiler.reset()
    # what the run held, for the next one of this process: cycles, the GPU's cache
    gc.collect()
    with contextlib.suppress(RuntimeError):  # after an error that has ended CUDA's context
        torch.cuda.empty_cache()  # does nothing where no GPU was used
    return outcome


def _train(train, config):
    """The Outcome of train(config); where it fails or is stopped, the last thing printed says why.

    Raises OSError where the log cannot be written.
    """
    try:
        train(config)
    except (Stopped, Exception) as error:
        outcome = outcome_of(error)
        # To stdout, which the log gets; stderr is the terminal's alone.
        if not isinstance(error, EXPECTED):
            print(traceback.format_exc())
        print(f"\n{outcome.state}: {outcome.message}", flush=True)
        return outcome
    return Outcome("finished")


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
        self.file.write(f"\n== {now()}, process {os.getpid()} on {socket.gethostname()}\n")
        self.terminal = sys.stdout

    def write(self, text):
        # Flushed: the log of a killed run has all that it printed.
        for stream in filter(None, (self.file, self.terminal)):
            stream.write(text)
            stream.flush()
        return len(text)

    def close(self):
        self.file.close()
