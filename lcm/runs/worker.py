"""One run of a sweep in a launcher's process: its log, its signals, its GPU, how it ended.

A run of a sweep never raises: what went wrong with it is in its Outcome and its log.txt.
"""

import contextlib
import io
import multiprocessing
import os
import socket
import sys
import traceback
from typing import NamedTuple

import torch

from lcm.errors import NotFinite, OwnedElsewhere, Stopped, UserError, in_words
from lcm.files import unwritable
from lcm.runs.directory import now, run_directory
from lcm.runs.status import LOG_ERROR, LOG_PART, status_of
from lcm.training.device import release_memory
from lcm.training.signals import STOP


class Outcome(NamedTuple):
    """How a run of a sweep ended: finished, failed, owned, stopped (by `signal`) or lost."""

    state: str
    message: str | None = None
    signal: str | None = None


def run_one(train, config):
    """Train the run of a resolved config with `train(config)`; returns an Outcome, whatever
    happens.

    In a worker of the parallel launcher what it prints goes to its log.txt alone, and one line at
    its end says how it ended.
    """
    directory = run_directory(config)
    worker = worker_number()
    # `train` asks again, under the lock; here to leave the log of others alone
    state = status_of(directory).state
    if state in ("live", "finished"):
        return Outcome("owned" if state == "live" else "finished")
    try:
        with stoppable(worker), Log(directory / "log.txt", None if worker else sys.stdout) as log:
            outcome = _train(train, config | {"device": share_gpus(config["device"], worker)}, log)
    except (Stopped, Exception) as error:  # a signal before it began, or a log without a place
        outcome = outcome_of(error)
    if config["compile"]:  # or the next networks reach the limit of recompilations
        torch.compiler.reset()
    release_memory()
    if worker:
        print(f"{outcome.state:9}  {directory}", flush=True)
    return outcome


def _train(train, config, log):
    """The Outcome of train(config).

    Its output goes to the log, which says at its end why it ended.
    """
    errors = sys.stderr if log.terminal else log
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(errors):
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
    """A new part of a run's log.txt, and the terminal beside it where there is one. UserError where
    it cannot be written.
    """

    def __init__(self, file, terminal):
        self.file, self.terminal = file, None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = open(file, "a")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise unwritable(file, error) from error
        self.write(f"{LOG_PART}{now()}, process {os.getpid()} on {socket.gethostname()}\n")
        self.terminal = terminal

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            raise unwritable(self.file, error) from error
        if self.terminal:
            self.terminal.write(text)
            self.terminal.flush()
        return len(text)

    def close(self):
        self.stream.close()


def worker_number():
    """The number, from 1, of a worker process of the parallel launcher; 0 in any other process."""
    name, _, number = multiprocessing.current_process().name.partition("-")
    return int(number) if name == "LokyProcess" else 0


def share_gpus(device, worker):
    """The device for a worker of the parallel launcher: of several GPUs each takes the next."""
    gpus = torch.cuda.device_count() if worker and device in ("auto", "cuda") else 0
    return f"cuda:{(worker - 1) % gpus}" if gpus > 1 else device


_for_life = contextlib.ExitStack()  # of a worker process


def stoppable(worker):
    """A run under signals. In a worker of the parallel launcher: once one has come, this run and
    later ones end with Stopped.

    From its first run on a worker remembers signals for the rest of its life: one that died would
    take the others with it.
    """
    if not worker:
        return contextlib.nullcontext()
    if not STOP.is_listening:
        _for_life.enter_context(STOP.listening())
        _for_life.enter_context(STOP.patient())
    return STOP.impatient()
