"""Real processes that train, for the tests of what happens to runs.

A process is forked from this one, which has torch imported: it starts in milliseconds, and is a process like any other.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from lcm import launch

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal that killed it) and what it said."""

    code: int
    out: str
    err: str


class Process:
    """A forked process, leader of its own group, that runs function(*args); what it prints goes to files in `folder`."""

    def __init__(self, folder, function, *args):
        self.out, self.err = (Path(folder) / name for name in ("out.txt", "err.txt"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setpgid(0, 0)
            for stream, file in ((1, self.out), (2, self.err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.pop("HYDRA_FULL_ERROR", None)
            function(*args)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return Ended(code, self.out.read_text(errors="replace"), self.err.read_text(errors="replace"))
            time.sleep(0.002)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(
            f"not ended after {timeout} s: {self.out.read_text()[-2000:]} {self.err.read_text()[-2000:]}"
        )


def train_as_main(config, prepare=None):
    """Train as `python train.py` does once the config is composed: its signals, its messages, its exit codes.

    `prepare` is called first; there a test can arrange what is to happen in this process.
    """
    from lcm.training.failures import Stopped
    from train import train

    if prepare:
        prepare()
    launch.composed()
    try:
        with launch.STOP.listening():
            train(config)
    except (Stopped, Exception) as error:
        launch.end(error)


def run(folder, config, prepare=None):
    """Train in a process of its own, to whatever end. Returns Ended."""
    return Process(folder, train_as_main, config, prepare).wait()


def command(folder, *arguments, prepare=None, environment=()):
    """`python train.py ARGUMENTS`, forked: Hydra, the checks and all. Returns Ended."""

    def main():
        import train

        if prepare:
            prepare()
        os.environ.update(dict(environment))
        os.chdir(ROOT)
        sys.argv = ["train.py", *arguments]
        launch.main(train.main)

    return Process(folder, main).wait()


def directory_of(config):
    """The run directory of a config."""
    from lcm.run import run_directory

    return run_directory(config)
