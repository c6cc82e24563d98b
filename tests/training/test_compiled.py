"""compile=true: compiled training computes what plain training does, and compiles once.

test_whole_runs.py continues a compiled run.
"""

import copy
import os
import shutil
import sysconfig
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from plain import digest, distance, fit, invented_batches
from tiny import Process, state_of

import train
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


def changes_nothing(network, *facts):
    before = digest(network.state_dict())
    forward = compiled(network, *facts)
    assert before == digest(network.state_dict())
    assert all(parameter.grad is None for parameter in network.parameters())
    return forward


def compare_with_plain():
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()  # of tests before the fork
    plain = fill_sites(CifarResNet(8, 10), partial(LCM2, reduction=4))
    network = copy.deepcopy(plain)
    batches = invented_batches(40, 16)
    (expected,) = fit(plain, batches, rate=1e-3).rows
    with mock.patch.object(train, "compiled", changes_nothing):
        (row,) = fit(network, batches, rate=1e-3, compile=True).rows
    assert distance(plain, network) <= 1e-4 and row == pytest.approx(expected, rel=1e-4)
    # for whole batches; the smaller one at the end of the epoch makes none
    assert graphs["unique_graphs"] == 1


@needs_compiler
def test_it_is_the_same_training(tmp_path):
    """Within float32's rounding, with a smaller last batch; compiling changes no tensor.

    In a process of its own: none may be forked from one that has compiled, and other tests do that.
    """
    ended = Process(tmp_path, compare_with_plain).wait()
    assert ended.code == 0, ended.out + ended.err


def test_a_machine_without_compiler_is_told_so(tiny, ends, tmp_path):
    def no_compiler():
        import torch._inductor.config

        torch._inductor.config.cpp.cxx = (None, "/nowhere/g++")

    config = tiny(f"runs={tmp_path}", "attention=none", "compile=true")
    message = ends(config, 2, "/nowhere/g++", prepare=no_compiler).err.splitlines()[-1]
    assert message.startswith("error: compile=true: torch.compile cannot compile here")
    assert (
        message.endswith("install them, or set compile=false")
        and state_of(config)["state"] == "stopped"
    )
