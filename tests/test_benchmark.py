"""The benchmark: its sides do the same work on the same images; its file, the docs."""

import multiprocessing
import re
import shlex
from unittest import mock

import benchmark
import numpy as np
import pandas as pd
import pytest
import torch
from benchmark import COLUMNS, config_of, main, plain, project
from tiny import ROOT
from torch import nn

import train
from lcm.data import Digits
from lcm.models.build import build_network

RECORDED = ROOT / "results" / "benchmark.csv"


class Few(Digits):
    """A few images of random bytes, for training and test, in place of the digits."""

    def __init__(self, images, **keys):
        super().__init__(**keys)
        pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), np.uint8)
        few = pixels, self._train[1][:images]
        self.hold(few, few, self.classes, self.mean, self.std)


def config(images, batch=4, **data):
    words = ["threads=1", "device=cpu", "model.layers=8", f"schedule.batch_size={batch}"]
    made = config_of("resnet20", "none", "fp32", words)
    made["data"] |= data | {"_target_": "test_benchmark.Few", "images": images}
    return made | {"allocator": False}


def trained(loop, config, epochs, build):
    """Train a network of `build` for some epochs and one that is not counted."""
    with (
        mock.patch.multiple(train, build_network=build, count=lambda *_: None),
        mock.patch.object(benchmark, "build_network", build),
    ):
        return loop(config, epochs)


class Watched(nn.Module):
    """A network that keeps the training images which it sees, as (images, 3 * 32 * 32)."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 10)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().flatten(1).clone())
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("loop", [project, plain])
def test_a_side_crops_after_padding_and_mirrors(loop):
    """Two images, many epochs: one view of each an epoch, normalised; most of 162 are seen."""
    data = Few(2)
    padded = nn.functional.pad(torch.from_numpy(data._train[0][0]).permute(2, 0, 1), [4] * 4)
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    known = torch.stack(windows + [window.flip(2) for window in windows])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    known = ((known / 255 - mean) / std).flatten(1)
    network = Watched()
    trained(loop, config(2, batch=2), 299, lambda *_, **__: network)
    exact = "donot_use_mm_for_euclid_dist"
    distances, nearest = torch.cdist(torch.cat(network.seen), known, compute_mode=exact).min(1)
    ours = distances < 1e-4
    assert ours.sum() == 300  # the other 300 are views of the other image
    assert 115 < len(set(nearest[ours].tolist())) <= 162  # 137 expected, deviation 4


def test_both_sides_take_the_same_steps():
    """The only batch of an epoch has all images: the same weights up to rounding."""
    networks = []

    def kept(*args, **keys):
        networks.append(build_network(*args, **keys))
        return networks[-1]

    for loop in (project, plain):
        trained(loop, config(32, batch=32, pad=0, mirror=False), 2, kept)
    ours, theirs = (dict(network.named_parameters()) for network in networks)
    for name, start in build_network("resnet20", seed=0, layers=8).named_parameters():
        assert (ours[name] - theirs[name]).norm() < 0.05 * (theirs[name] - start).norm(), name


@pytest.mark.parametrize("loop", [project, plain])
def test_the_first_epoch_is_not_counted(monkeypatch, loop):
    """A clock that moves with each batch: the first ones take long."""
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    class Slow(Watched):
        def forward(self, x):
            now[0] += self.training * (100 if len(self.seen) < 2 else 1)
            return super().forward(x)

    network = Slow()
    machine, step, epoch = trained(loop, config(8), 3, lambda *_, **__: network)
    assert (step, epoch) == (4, 4) and machine.endswith("1 thread)")  # 4 images a second


def test_ratios_are_taken_within_rounds():
    """The second round is slow for both: neither the ratio of the medians nor its mean."""
    sides = [("resnet20", name, "fp32") for name in ("none", "se")]
    speeds = np.array([[100, 150], [50, 100], [110, 176]])
    found = benchmark.rows("X", "epoch", sides, speeds)
    assert found["images_per_second"].tolist() == ["100", "150"]
    assert found.loc[1, ["ratio", "low", "high"]].tolist() == ["1.6", "1.5", "2"]
    speeds = np.array([[100, 80], [50, 50], [90, 45]])
    found = benchmark.rows("X", "attention", sides, speeds).loc[1, COLUMNS[2:]]
    assert found.tolist() == ["X", "attention", *sides[1], "50", "1.25", "1", "2", 3]


@pytest.mark.commands
def test_the_command(tmp_path, monkeypatch):
    """With processes, forked ones, which start sooner; the file has this run's rows alone."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", {"spawn": fork}.get)
    file = tmp_path / "b.csv"
    file.write_text("of an earlier run")
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    words = ["--networks", "resnet20", "--variants", "fp32", "--out", str(file), "device=cpu"]
    main([*words, "--epochs", "1", "model.layers=8", "schedule.batch_size=256", "threads=1"])
    found = pd.read_csv(file)
    assert list(found.columns) == COLUMNS
    shown = [f"{name} model.layers=8 schedule.batch_size=256" for name in ("plain", "fp32")]
    assert found[["what", "variant", "rounds"]].to_numpy().tolist() == [
        [what, variant, 1] for what in ("step", "epoch") for variant in shown
    ]
    assert (found["images_per_second"] > 0).all()
    assert found["machine"].str.fullmatch(r"cpu \(.+, 1 thread\)").all()

    speeds = {"plain": (5, 4), "fp32": (10, 9)}
    monkeypatch.setattr(benchmark, "turn", lambda variant, *_: ("X", *speeds[variant]))
    main([*words, "--attentions", "se"])
    assert pd.read_csv(file)["ratio"].tolist() == [1, 2, 1, 2.25, 1, 1]  # steps, epochs, attention


def test_the_readme_and_the_recorded_rows_agree():
    recorded = pd.read_csv(RECORDED)
    assert list(recorded.columns) == COLUMNS
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"An epoch of training beside a plain PyTorch loop.*?results/benchmark.csv", readme
    )[0]
    epochs = recorded[(recorded["what"] == "epoch") & ~recorded["variant"].str.startswith("plain")]
    for network, title in (("resnet20", "ResNet-20"), ("densenet40", "DenseNet-40")):
        own = epochs[epochs["network"] == network].itertuples()
        assert f"{title} " + ", ".join(f"{row.ratio:.2f} ({row.variant})" for row in own) in said
    assert set(epochs["machine"]) == set(re.findall(r"cpu \(.*? threads\)", said))
    assert set(epochs["date"]) == set(re.findall(r"\d{4}-\d\d-\d\d", said))


@pytest.mark.parametrize("page", ["benchmark", "gpu"])
def test_the_commands_of_the_docs_are_understood(page, monkeypatch):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    commands = re.findall(r"^ *python scripts/benchmark\.py(.*)$", text, re.MULTILINE)
    assert commands
    monkeypatch.setattr(benchmark, "turn", lambda *_: ("X", 1, 1))
    monkeypatch.setattr(benchmark, "write", lambda *_: None)
    for command in commands:
        main(shlex.split(command, comments=True))
