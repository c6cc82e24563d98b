"""compile=true: compiled training computes what plain training does, and a killed run ends with the same bits."""

import contextlib
import copy
import json
import os
import shutil
import signal
import sysconfig
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lcm.training.sgd import SGD
from prove_resume import compare_runs
from tiny import Process, after_step, die, directory_of, run

from lcm.attention import LCM2
from lcm.models import CifarResNet, fill_sites
from lcm.training import checkpoint
from lcm.training.step import TrainStep

can_compile = shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(not can_compile, reason="needs a C++ compiler and Python's header files")


@pytest.fixture(scope="module")
def compiled(tiny, tmp_path_factory):
    """(a function from a folder's name to the config of a compiled run in it, the folder in which `whole` is finished)."""
    folder = tmp_path_factory.mktemp("compiled")

    def config(name, *overrides):
        words = ["attention=none", "schedule.epochs=2", "checkpoint.every=2 steps", "compile=true", *overrides]
        return tiny(f"runs={folder / name}", *words)

    ended = run(folder, config("whole"))
    assert ended.code == 0 and "fp32, compiled" in ended.out and "compiled in" in ended.out, ended.err
    return config, folder


def compare_with_plain():
    plain = fill_sites(CifarResNet(8, 10), partial(LCM2, reduction=4), seed=0)
    plain = plain.to(torch.float64, memory_format=torch.channels_last)
    network = copy.deepcopy(plain)
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8)
    for trained, called in ((plain, plain), (network, torch.compile(network))):
        optimizer = SGD(trained.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        step = TrainStep(called, optimizer, contextlib.nullcontext(), torch.device("cpu"))
        for _ in range(3):
            step(images, labels)
    for (name, there), here in zip(plain.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9, msg=name)
    print("compared after", step.totals[2].item(), "images")


@pytest.mark.slow
@needs_compiler
def test_it_is_the_same_training(tmp_path):
    """In float64: in float32 a rounding that carries one value over a ReLU's corner changes a gradient by a thousandth.

    In a process of its own: none may be forked from one that has compiled, and other tests do that.
    """
    ended = Process(tmp_path, compare_with_plain).wait()
    assert ended.code == 0 and ended.out == "compared after 24.0 images\n", ended.err


def test_a_signal_does_not_wait_for_the_compiler(tiny, tmp_path):
    """Nothing is lost by it: there was no step yet."""

    def signal_in_the_first_step():
        from torch._dynamo import convert_frame

        def compiles_for_minutes(*args, **keys):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(100)

        convert_frame._compile = compiles_for_minutes

    config = tiny(f"runs={tmp_path}", "attention=none", "compile=true")
    started = time.monotonic()
    ended = run(tmp_path, config, signal_in_the_first_step)
    assert ended.code == 75 and "SIGTERM: nothing was in progress that is not saved" in ended.err
    assert time.monotonic() - started < 60 and not (directory_of(config) / checkpoint.NAME).exists()
    assert json.loads((directory_of(config) / "run.json").read_text())["state"] == "stopped"


@needs_compiler
def test_a_killed_run_is_continued_exactly(compiled):
    config, folder = compiled

    assert run(folder, config("killed"), after_step(9, die)).code == -signal.SIGKILL
    ended = run(folder, config("killed"))
    assert ended.code == 0 and "continuing  from epoch 2, step 2" in ended.out
    assert compare_runs(*(directory_of(config(name)) for name in ("whole", "killed"))) == []


def test_a_machine_without_compiler_is_told_so(tiny, tmp_path):
    def no_compiler():
        import torch._inductor.config

        torch._inductor.config.cpp.cxx = (None, "/nowhere/g++")

    config = tiny(f"runs={tmp_path}", "attention=none", "compile=true")
    ended = run(tmp_path, config, no_compiler)
    assert ended.code == 2 and "Traceback" not in ended.err
    message = ended.err.splitlines()[-1]
    assert message.startswith("error: compile=true: torch.compile cannot compile here") and "/nowhere/g++" in message
    assert message.endswith("install them, or take compile=false")
    assert json.loads((directory_of(config) / "run.json").read_text())["state"] == "stopped"
