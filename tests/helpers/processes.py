"""Starting real sweeps as processes, and reading what they left: for the tests of sweeps and
launchers.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAKE, REAL = ROOT / "tests" / "helpers" / "fake_train.py", ROOT / "train.py"
GRID = ["-m", "attention=none,se,lcm2", "seed=0,1", "schedule.epochs=3", "runs=runs"]  # 6 runs
TINY = [
    "schedule.epochs=1",
    "model.layers=8",
    "schedule.batch_size=256",
    "threads=1",
    "tensorboard=false",
]


def start(script, *arguments, cwd, **environment):
    """Start a sweep in a process group of its own; its output can be read from `.stdout` (stderr
    included).
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{key: str(value) for key, value in environment.items()},
    }
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=cwd, env=environment, text=True,
            start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, timeout=240):
    """Wait for it; returns (exit code, all that it printed)."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        kill(process)
    return process.returncode, output


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
    process.wait()


def wait_until(condition, timeout=120):
    """Wait until condition() is true; returns its value."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise TimeoutError(f"not within {timeout} s: {condition}")


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


def record(runs):
    """{run: (epochs without wall time, weights)} of finished runs; the weights as {name: bytes}, {}
    of fake trainings.
    """
    found = {}
    for directory in sorted(file.parent for file in Path(runs).rglob("run.json")):
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            del row["seconds"], row["images_per_second"]
        weights = {}
        if (directory / "checkpoint.pt").exists():
            from lcm.training.checkpoint import load_model_weights

            weights = {
                name: tensor.numpy().tobytes()
                for name, tensor in load_model_weights(directory).items()
            }
        found[str(directory.relative_to(runs))] = rows, weights
    return found
