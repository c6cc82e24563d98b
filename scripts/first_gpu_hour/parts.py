"""The parts of the first hour with a GPU: each a function from the options to its findings, a dict.

A part raises Failed where its claim does not hold, and OutOfTime where its minutes are over and its processes were stopped.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS_TO_SAVE = 60  # from SIGTERM to SIGKILL


class Failed(Exception):
    pass


class OutOfTime(Exception):
    pass


def start(options, *arguments):
    """Start Python with these arguments in a new process group, its output appended to the part's log."""
    with open(options.log, "a") as log:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT)


def finish(options, process):
    """Wait for a process. Raises Failed where its exit code is not 0, OutOfTime where it had to be stopped by SIGTERM."""
    try:
        code = process.wait(max(0, options.deadline - time.monotonic()))
    except BaseException as reason:  # out of time, or Ctrl-C
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_SAVE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(reason, subprocess.TimeoutExpired):
            raise OutOfTime from reason
        raise
    if code:
        lines = options.log.read_text().splitlines()
        raise Failed(f"exit code {code}: {lines[-1] if lines else ''} (see {options.log.name})")


def run(options, *arguments):
    finish(options, start(options, *arguments))
    return {}


def gpu_tests(options):
    """The tests that need a GPU; in a rehearsal they are skipped."""
    files = ["tests/training/test_gpu.py"] if options.rehearse else []
    return run(options, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", *files)


def benchmark(part):
    """A part of scripts/benchmark, which writes results/benchmark-gpu.csv; a rehearsal checks its command line alone."""

    def measured(options):
        arguments = ["--gpu", "--parts", part]
        if options.rehearse:
            from benchmark.__main__ import parse

            parse([*arguments, "--out", str(options.out / "benchmark.csv")])
            return {"rehearsed": "the command line"}
        run(options, "scripts/benchmark", *arguments)
        return {"rows": "results/benchmark-gpu.csv"}

    return measured


def demand_same_bits(one, other):
    """Raise Failed where two finished runs differ in a weight, a momentum or a number of their record, wall time apart."""
    import torch

    from lcm.training import checkpoint

    rows, tensors = [], []
    for directory in (one, other):
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        timed = ("seconds", "images_per_second")
        rows.append([{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines])
        saved = checkpoint.newest(directory, json.loads((directory / "run.json").read_text())["config_hash"])
        tensors.append({(kind, name): t for kind in ("model", "momentum") for name, t in saved[kind].items()})
    differing = [" ".join(name) for name, t in tensors[0].items() if not torch.equal(t, tensors[1][name])]
    if rows[0] != rows[1] or differing:
        count = f"{len(differing)} of {len(tensors[0])} tensors {differing[:3]}"
        raise Failed(f"{one.name} and {other.name} differ: {count}")


def same_bits(name, override, kill=False):
    """A part: short deterministic runs on the digits give the same bits as captured runs that are not interrupted.

    The digits are a built-in data set, and their last batch is smaller, so that there are two graphs. With `kill` the run is
    killed after its first checkpoint and continued.
    """

    def compare(options):
        words = ["train.py", "data=digits", "attention=lcm2", "deterministic=true", "tensorboard=false"]
        words += ["model.layers=8", "schedule.epochs=1", "device=cpu"] if options.rehearse else ["device=cuda"]
        models = ["resnet20"] if options.rehearse else ["resnet20", "densenet40"]
        for model in models:
            whole, other = (options.out / "runs" / f"{model}-{kind}" for kind in ("captured", name))
            shutil.rmtree(other, ignore_errors=True)
            run(options, *words, f"model={model}", f"run_directory={whole}")  # does nothing where it is finished
            disturbed = [*words, f"model={model}", f"run_directory={other}", override]
            if kill:
                process = start(options, *disturbed)
                while not (other / "checkpoint.pt").exists() and process.poll() is None:
                    time.sleep(0.02)
                process.kill()
                if process.wait() != -signal.SIGKILL:
                    raise Failed(f"the run ended before it could be killed (see {options.log.name})")
            run(options, *disturbed)
            demand_same_bits(whole, other)
        if "no CUDA graph" in options.log.read_text():
            raise Failed(f"a step was not captured (see {options.log.name})")
        return {"same bits": models}

    return compare


def table2(options):
    """The rows of Table 2, four at once; stopped and saved at the end of its minutes, continued by the next call."""
    words = ["experiment=table2", "hydra/launcher=parallel", "hydra.launcher.n_jobs=4", *options.overrides]
    if options.rehearse:
        words = ["-m", "data=digits", "model.layers=8", "attention=none,lcm2", "schedule.epochs=1", "device=cpu"]
        words += ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "tensorboard=false", f"runs={options.out}/runs"]
    return run(options, "train.py", *words)


PARTS = {"tests": gpu_tests, "weights": same_bits("eager", "capture=false")}
PARTS |= {part: benchmark(part) for part in ("step", "epoch", "memory", "packed")}
PARTS |= {"resumed": same_bits("killed", "checkpoint.every='5 steps'", kill=True), "table2": table2}
