"""Whole runs by the real command: a schedule and modules of one's own, random ones too, killed and
continued, alone and in a sweep, compiled or not: the same metrics.jsonl.

Compiled training computes what plain training does, and compiles once."""

import copy
import json
import os
import random
import shutil
import signal
import sysconfig
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from plain import digest, distance, fit, invented_batches
from tiny import Process, after_step, command, die, state_of
from torch import nn

import train
from lcm.attention import LCM2
from lcm.models import CifarResNet, Site, fill_sites
from lcm.runs.run import Run
from lcm.training.compilation import compiled

pytestmark = pytest.mark.commands

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


STEPS = 23  # of an epoch: 1437 digits in batches of 64
CONFIGS = {
    "model/small": "family: small\nimage_size: 32\n_target_: test_whole_runs.Small",
    "attention/dropout": "_target_: test_whole_runs.Dropout\nsites: every",
    "attention/noise": "_target_: test_whole_runs.Noise\nsites: every",
    "schedule/mine": "decay: cosine\nwarm_up: 1\noptimizer: adamw\nlabel_smoothing: 0.1\n"
    "learning_rate: 0.002\ndefaults: [digits]",
}


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.site = Site(4, 1)
        self.fc = nn.Linear(4 * 64, num_classes)

    def forward(self, x):
        return self.fc(self.site(self.conv(x).relu()).flatten(1))


class Dropout(nn.Module):
    """Draws from torch's generator, in evaluation too; its gate is to be zero at the start."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return nn.functional.dropout(x, 0.2) + self.gate * x


class Noise(Dropout):
    """Draws from numpy's and Python's, too."""

    def forward(self, x):
        return x * (1 + self.gate) + 0.1 * (np.random.rand() + random.random())


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, text in CONFIGS.items():
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"name: {file.stem}\n{text}\n")
    return folder


def show_gates():
    """Print whether each `gate` is zero when the first step begins."""
    original = Run.epochs

    def epochs(self, training, batches):
        named = training.network.named_parameters()
        print("gates", [tensor.any().item() for name, tensor in named if name.endswith("gate")])
        return original(self, training, batches)

    Run.epochs = epochs


@pytest.fixture
def trained(folder):
    """A function: the lines of metrics.jsonl without times, {attention: lines}, after commands.

    Each of them `(prepare, words)` on the same runs; the last one ends them.
    """

    def train(name, *commands):
        always = [
            "model=small",
            "threads=1",
            "device=cpu",
            "tensorboard=false",
            "schedule.epochs=2",
        ]
        for code, prepare, words in commands:
            words = ["--config-dir", folder / "conf", f"runs={folder}/{name}", *always, *words]
            ended = command(folder, *words, prepare=prepare)
            assert ended.code == code, ended
        found = {}
        for file in (folder / name).rglob("metrics.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            times = {"seconds": 0, "images_per_second": 0}
            found[file.parent.parent.name] = [row | times for row in rows]
        return found, ended.out

    return train


def killed(words):
    """The command that is killed in step 9 of its last epoch, with a checkpoint after step 7."""
    return -signal.SIGKILL, after_step(STEPS + 9, die), [*words, "checkpoint.every=5 steps"]


def test_a_schedule_of_ones_own_is_continued_exactly(trained):
    words = ["attention=none", "schedule=mine"]
    whole, out = trained("whole", (0, None, words))
    said = "0.002 falling as a cosine after a warm-up of 1 epoch, label smoothing 0.1, AdamW\n"
    assert said in out and [row["lr"] for row in whole["none"]] == [0.001, 0.002]
    parts, out = trained("parts", killed(words), (0, None, words))
    assert "continuing  from epoch 2, step 7" in out and parts == whole


@pytest.mark.parametrize(
    "switch, names",
    [("false", ["noise", "dropout"]), pytest.param("true", ["noise"], marks=needs_compiler)],
)
def test_random_modules_give_the_same_bits_alone_continued_and_in_a_sweep(trained, switch, names):
    always = f"compile={switch}"
    sweep = ["-m", "attention=dropout,noise", always]
    swept, out = trained(f"swept {switch}", (0, show_gates, sweep))
    assert out.count("gates [False]") == 2 and swept["noise"] != swept["dropout"]
    for name in names:
        words = [f"attention={name}", always]
        parts, out = trained(f"parts {name} {switch}", killed(words), (0, None, words))
        assert "continuing  from epoch 2, step 7" in out and parts[name] == swept[name]
