"""One run of a sweep, in whatever process a launcher starts it: its log, its signals, its GPU, and how it ended.

A run of a sweep never raises: what went wrong with it is told by its Outcome and its log.txt.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback
from typing import NamedTuple

from lcm.errors import NotFinite, OwnedElsewhere, Stopped, UserError
from lcm.files import unwritable
from lcm.runs.directory import now, run_directory
from lcm.runs.standing import LOG_ERROR, LOG_PART, standing_of
from lcm.training.signals import STOP


class Outcome(NamedTuple):
    """How a run of a sweep ended. state: finished, failed, owned (by another process), stopped (by `signal`), lost (unknown)."""

    state: str
    message: str | None = None
    signal: str | None = None


def run_one(train, config):
    """Train the run of a resolved config with `train(config)`; returns an Outcome, whatever happens."""
    directory = run_directory(config)
    worker = worker_number()
    try:
        state = standing_of(
            directory
        ).state  # asked again by train, with the lock; here to leave the log of others alone
        if state in ("live", "finished"):
            return Outcome("owned" if state == "live" else "finished")
        with stoppable(worker), logged(directory, quiet=bool(worker)):
            train(config | {"device": share_gpus(config["device"], worker)})
        return Outcome("finished")
    except OwnedElsewhere as error:
        return Outcome("owned", str(error))
    except Stopped as stopped:
        return Outcome("stopped", str(stopped), stopped.signal)
    except Exception as error:
        if STOP.at_once:  # the signal's exception was swallowed by code that it left half done
            return Outcome("stopped", STOP.requested, STOP.requested)
        return Outcome("failed", described(error))
    finally:
        forget(config)


def forget(config):
    """Free what the run has left: the network, compiled code, the GPU's memory."""
    torch = sys.modules.get("torch")
    if torch is None:  # nothing was trained
        return
    from lcm.training.device import release_memory

    if config["compile"]:
        torch.compiler.reset()  # or the next networks run into the limit of recompilations, and run uncompiled
    release_memory()


def described(error):
    """An exception as the message that a user reads."""
    return str(error) if isinstance(error, (UserError, NotFinite)) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def logged(directory, quiet):
    """Copy what the block prints to the run's log.txt, and why it ended; `quiet`: nothing but a line at its end is shown.

    Raises what the block raises, and UserError where the log cannot be written.
    """
    end = "finished"
    try:
        with Log(directory) as log, to_log(log) if quiet else contextlib.redirect_stdout(Tee(sys.stdout, log)):
            try:
                yield
            except OwnedElsewhere:
                end = "elsewhere"
                raise
            except Stopped as stopped:
                end = "stopped"
                log.write(f"\nstopped by {stopped}\n")
                raise
            except BaseException as error:
                end = "failed"
                if not isinstance(error, (UserError, NotFinite)):
                    log.write(traceback.format_exc())
                log.write(f"{LOG_ERROR}{described(error)}\n")
                if not quiet:
                    print(f"error: {described(error)}", file=sys.stderr, flush=True)
                raise
    finally:
        if quiet:
            print(f"{end:9}  {directory}", flush=True)


class Log:
    """A run's log.txt; the first thing that is written to it begins a new part."""

    def __init__(self, directory):
        self.file = directory / "log.txt"
        self.stream = None

    def write(self, text):
        try:
            if self.stream is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.stream = open(self.file, "a", buffering=1)  # noqa: SIM115  closed by __exit__
                self.stream.write(f"{LOG_PART}{now()}, process {os.getpid()} on {socket.gethostname()}\n")
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            raise unwritable(self.file, error) from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.stream:
            self.stream.close()


@contextlib.contextmanager
def to_log(log):
    """Send this process's output and errors, those of its C code and of its loader workers too, to the log alone."""
    log.write("")
    streams = sys.stdout, sys.stderr
    kept = [os.dup(stream.fileno()) for stream in streams]
    try:
        for stream in streams:
            stream.flush()
            os.dup2(log.stream.fileno(), stream.fileno())
        yield
    finally:
        for stream, descriptor in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)


class Tee:
    """Writes to a terminal and a log; for everything else it is the terminal."""

    def __init__(self, terminal, log):
        self._terminal, self._log = terminal, log

    def write(self, text):
        self._log.write(text)
        return self._terminal.write(text)

    def __getattr__(self, name):
        return getattr(self._terminal, name)


def worker_number():
    """The number, from 1, of a worker process of the parallel launcher; 0 in any other process."""
    name, _, number = multiprocessing.current_process().name.partition("-")
    return int(number) if name == "LokyProcess" and number.isdigit() else 0


def share_gpus(device, worker):
    """The device for a worker of the parallel launcher: where there are several GPUs, each takes the next."""
    if not worker or device not in ("auto", "cuda"):
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{(worker - 1) % gpus}" if gpus > 1 else device


_for_life = contextlib.ExitStack()  # of a worker process


def stoppable(worker):
    """A run under signals. In a worker of the parallel launcher: once one has come, this run and later ones end with Stopped.

    From its first run on a worker remembers signals for the rest of its life: one that died would take the others with it.
    """
    if not worker:
        return contextlib.nullcontext()
    if not STOP.is_listening:
        _for_life.enter_context(STOP.listening())
        _for_life.enter_context(STOP.patient())
    return STOP.impatient()
