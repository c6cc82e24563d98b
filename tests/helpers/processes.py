"""Starting sweeps as processes, and reading what they left.

They are forked from this process, which has torch imported (tiny.py), and run the script from there
on as `python SCRIPT ...` does.
"""

import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

from tiny import ROOT, started

FAKE, REAL = ROOT / "tests" / "helpers" / "fake_train.py", ROOT / "train.py"
GRID = ["-m", "attention=none,se,lcm2", "seed=0,1", "schedule.epochs=3", "runs=runs"]  # 6 runs
TINY = ["schedule.epochs=1", "model.layers=8", "schedule.batch_size=256", "threads=1"]
NUMBERS = itertools.count()  # of the processes: what one prints is in ../process<number>.out


def start(script, *arguments, cwd, **environment):
    """Start a sweep in a process group of its own, with these variables in its environment."""
    variables = {key: str(value) for key, value in environment.items()}
    name = f"process{next(NUMBERS)}"
    return started(
        Path(cwd).parent, script, arguments, cwd, lambda: os.environ.update(variables), name
    )


def finish(process):
    """Wait for it; returns (exit code, all that it printed)."""
    try:
        ended = process.wait()
    finally:
        kill(process)
    return ended.code, ended.out + ended.err


def sweep(script, *arguments, cwd, **environment):
    """A sweep from its start to its end: (exit code, all that it printed)."""
    return finish(start(script, *arguments, cwd=cwd, **environment))


def succeed(script, *arguments, cwd, **environment):
    """What a sweep that ends with exit code 0 printed."""
    code, output = sweep(script, *arguments, cwd=cwd, **environment)
    assert code == 0, output
    return output


def kill(process):
    """SIGKILL to the sweep and all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def wait_until(condition, timeout=120):
    """Wait until condition() is true; returns its value."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout} s: {condition}")
        time.sleep(0.02)
    return value


def states(runs):
    """How many runs there are in each state, from their run.json."""
    return Counter(json.loads(file.read_text())["state"] for file in Path(runs).rglob("run.json"))


def trained(runs):
    """{run directory: [(epoch, process), ...]}: what fake trainings did."""
    found = {}
    for file in Path(runs).rglob("trained.txt"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.parent] = [(line["epoch"], line["process"]) for line in lines]
    return found
