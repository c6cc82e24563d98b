"""compile=true: compiled training computes what plain training does, compiles once, and a killed run ends with the same bits."""

import copy
import os
import shutil
import signal
import sysconfig
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from plain import distance, fit, invented_batches
from tiny import Process, after_step, die, directory_of, state_of

from lcm.attention import LCM2
from lcm.models import CifarResNet, fill_sites
from lcm.training.compilation import compiled

can_compile = (
    shutil.which(os.environ.get("CXX", "g++"))
    and Path(sysconfig.get_path("include"), "Python.h").exists()
)
needs_compiler = pytest.mark.skipif(
    not can_compile, reason="needs a C++ compiler and Python's header files"
)
UNEVEN = "schedule.batch_size=10"  # of 48 images: the last batch has 8
REFERENCE = ("attention=none", "schedule.epochs=2", "compile=true", UNEVEN)


def compare_with_plain():
    plain = fill_sites(CifarResNet(8, 10), partial(LCM2, reduction=4)).to(
        memory_format=torch.channels_last
    )
    network = copy.deepcopy(plain)
    batches, autocast = invented_batches(40, 16), torch.autocast("cpu", enabled=False)
    before = [tensor.clone() for tensor in network.state_dict().values()]
    forward = compiled(network, 16, 32, autocast)
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert all(parameter.grad is None for parameter in network.parameters())
    del forward
    rows = [
        fit(one, batches, rate=1e-3, compile=switch).rows[0]
        for one, switch in ((plain, False), (network, True))
    ]
    print("distance", distance(plain, network), *rows)
    assert distance(plain, network) <= 1e-4 and rows[1] == pytest.approx(rows[0], rel=1e-4)


@needs_compiler
def test_it_is_the_same_training(tmp_path):
    """Within float32's rounding, a smaller last batch included; compiling changes no weight, statistic or gradient.

    In a process of its own: none may be forked from one that has compiled, and other tests do that.
    """
    ended = Process(tmp_path, compare_with_plain).wait()
    assert ended.code == 0, ended.out + ended.err


def test_a_signal_does_not_wait_for_the_compiler(tiny, ends, tmp_path):
    """Nothing is lost by it: there was no step yet."""

    def signal_while_it_compiles():
        from torch._dynamo import convert_frame

        def compiles_for_minutes(*args, **keys):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(100)

        convert_frame._compile = compiles_for_minutes

    config, started = tiny(f"runs={tmp_path}", "attention=none", "compile=true"), time.monotonic()
    ends(
        config,
        75,
        "SIGTERM: nothing was in progress that is not saved",
        prepare=signal_while_it_compiles,
    )
    assert time.monotonic() - started < 60 and not (directory_of(config) / "checkpoint.pt").exists()
    assert state_of(config)["state"] == "stopped"


@needs_compiler
@pytest.mark.parametrize("step, place", [(8, "epoch 2, step 2"), (10, "epoch 2, step 4")])
def test_it_compiles_once_and_a_killed_run_is_continued_exactly(
    tiny, ends, finishes_exactly, tmp_path, step, place
):
    """Also where the first batch of the process that continues is the smaller one."""

    def count_and_die():
        from torch._dynamo.utils import counters

        before = counters["stats"][
            "unique_graphs"
        ]  # of this process's parent: other tests compile, too
        after_step(
            step, lambda: (print("graphs", counters["stats"]["unique_graphs"] - before), die())
        )()

    config = tiny(f"runs={tmp_path}", *REFERENCE, "checkpoint.every=1 steps")
    out = ends(config, -signal.SIGKILL, prepare=count_and_die).out
    assert "fp32, compiled" in out and out.count("compiled in") == 1
    assert (
        "\ngraphs 1\n" in out
    )  # one for whole batches; the smaller ones at the end of two epochs make none
    finishes_exactly(config, f"continuing  from {place}")


def test_a_machine_without_compiler_is_told_so(tiny, ends, tmp_path):
    def no_compiler():
        import torch._inductor.config

        torch._inductor.config.cpp.cxx = (None, "/nowhere/g++")

    config = tiny(f"runs={tmp_path}", "attention=none", "compile=true")
    message = ends(config, 2, "/nowhere/g++", prepare=no_compiler).err.splitlines()[-1]
    assert message.startswith("error: compile=true: torch.compile cannot compile here")
    assert (
        message.endswith("install them, or take compile=false")
        and state_of(config)["state"] == "stopped"
    )
