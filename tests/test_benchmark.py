"""The benchmark: its sides do the same work on the same images; its file, the docs."""

import os
import re
import shlex
from collections import Counter
from pathlib import Path

import benchmark
import pandas as pd
import pytest
import torch
from benchmark import COLUMNS, Side, main, parse, plain, project, rows
from torch import nn

import train
from lcm.config.compose import choices
from lcm.models.build import build_network

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "results" / "benchmark.csv"
KEY = ["what", "network", "attention", "variant"]


def config(steps=2, batch=4, **data):
    words = ["threads=1", "device=cpu", "model.layers=8", f"schedule.batch_size={batch}"]
    made = benchmark.composed("resnet20", words, steps)
    made["data"] |= data
    return made | {"allocator": False}


@pytest.fixture
def trained(monkeypatch):
    """A function: the clocks of some epochs of a side, with a network of `build`."""

    def train_for(loop, config, epochs, build):
        clocks = [Counter() for _ in range(epochs)]
        monkeypatch.setattr(benchmark, "timed_epochs", lambda seconds: clocks)
        for module in (train, benchmark):
            monkeypatch.setattr(module, "build_network", build)
        monkeypatch.setattr(train, "count", lambda *_: None)
        loop(config, 0)
        return clocks

    return train_for


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


def in_order(images):
    """Rows sorted by their first 8 pixels."""
    return images[sorted(range(len(images)), key=lambda i: images[i, :8].tolist())]


def normalised(pixels):
    """uint8 (N, 3, H, W) as the network has to see them, (N, 3 * H * W)."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (benchmark.MEAN, benchmark.STD))
    return ((pixels / 255 - mean) / std).flatten(1)


@pytest.mark.parametrize("loop", [project, plain])
def test_a_side_sees_every_image_once_an_epoch_normalised(trained, loop):
    pixels = benchmark.Invented(8, 32).train(4, 0).resident.images.permute(0, 3, 1, 2)
    network = Watched()
    clocks = trained(loop, config(pad=0, mirror=False), 2, lambda *_, **__: network)
    found = torch.cat(network.seen)
    assert len(found) == 16 and [clock["images"] for clock in clocks] == [8, 8]
    assert all(0 < clock["step"] <= clock["epoch"] for clock in clocks)
    for epoch in (found[:8], found[8:]):
        expected = in_order(normalised(pixels))
        torch.testing.assert_close(in_order(epoch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loop", [project, plain])
def test_a_side_crops_after_padding_and_mirrors(trained, loop):
    """One image, many epochs: every view is one of 162 windows, and most of these are seen."""
    pixels = benchmark.Invented(2, 32).train(2, 0).resident.images[0].permute(2, 0, 1)
    padded = nn.functional.pad(pixels, [4] * 4)
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    known = normalised(torch.stack(windows + [window.flip(2) for window in windows]))
    network = Watched()
    trained(loop, config(steps=1, batch=2), 300, lambda *_, **__: network)
    distances, nearest = torch.cdist(torch.cat(network.seen), known).min(1)
    ours = distances < 0.1
    assert ours.sum() == 300  # the other 300 are views of the other image
    assert 115 < len(set(nearest[ours].tolist())) <= 162  # 137 expected, deviation 4


def test_both_sides_take_the_same_steps(trained):
    """The only batch of an epoch has all images: the same weights up to rounding."""
    networks = []

    def kept(*args, **keys):
        networks.append(build_network(*args, **keys))
        return networks[-1]

    for loop in (project, plain):
        trained(loop, config(steps=1, batch=32, pad=0, mirror=False), 3, kept)
    ours, theirs = (dict(network.named_parameters()) for network in networks)
    for name, start in build_network("resnet20", seed=0, layers=8).named_parameters():
        moved = (theirs[name] - start).norm()
        assert (ours[name] - theirs[name]).norm() < 0.05 * moved, name


@pytest.mark.parametrize("seconds, epochs", [(0, 1), (3, 2)])
def test_a_turn_has_as_many_epochs_as_its_seconds_ask_for(seconds, epochs):
    first, *clocks = (
        clock
        for clock in benchmark.timed_epochs(seconds)
        if not clock.update(images=10, step=1.0, epoch=2.0)
    )
    assert len(clocks) == epochs and first["epoch"] == 2
    assert all(
        clock == {"images": 10 * epochs, "step": epochs, "epoch": 2 * epochs} for clock in clocks
    )


def table(what, *rounds):
    """The rows of none and SE, from images a second."""
    sides = [Side("resnet20", "fp32", name, ["threads=1"]) for name in ("none", "se")]
    for side in sides:
        side.machine = "X"
    reports = [[{"step": rate, "epoch": rate / 2} for rate in rates] for rates in rounds]
    return pd.DataFrame(rows(sides, reports, what), columns=COLUMNS)


def test_ratios_are_taken_within_rounds():
    """The second round is slow for both: neither the ratio of the medians nor its mean."""
    found = table("epoch", [100, 150], [50, 100], [110, 176])
    assert found["images_per_second"].tolist() == ["50", "75"]
    assert found.loc[1, ["ratio", "low", "high"]].tolist() == ["1.6", "1.5", "2"]
    found = table("attention", [100, 80], [50, 50], [90, 45])
    assert found.loc[1, ["ratio", "low", "high", "rounds"]].tolist() == ["1.25", "1", "2", "3"]


def test_the_command(tmp_path, monkeypatch):
    """With its processes; then other rows stay, and those of the same key are replaced."""
    file = tmp_path / "b.csv"
    words = ["--networks", "resnet20", "--variants", "fp32", "--out", str(file), "device=cpu"]
    main([*words, "--rounds", "1", "--seconds", "0", "--steps", "1", "model.layers=8", "threads=1"])
    found = pd.read_csv(file)
    assert list(found.columns) == COLUMNS
    assert found["what"].tolist() == ["step", "step", "epoch", "epoch"]
    assert found["variant"].tolist() == ["plain model.layers=8", "fp32 model.layers=8"] * 2
    assert (found["images_per_second"] > 0).all() and (found["rounds"] == 1).all()
    assert found["machine"].str.fullmatch(r"cpu \(.+, 1 thread\)").all()

    def turn(side, seconds):
        side.machine = "X"
        return {"step": rate, "epoch": rate / 2}

    monkeypatch.setattr(Side, "turn", turn)
    for rate, attentions in ((100, []), (200, ["--attentions", "se"])):  # noqa: B007
        main([*words, *attentions])
    found = pd.read_csv(file).set_index(KEY)["images_per_second"]
    assert len(found) == 4 + 4 + 2 and found["epoch", "resnet20", "none", "fp32"] == 100
    assert found["attention", "resnet20", "se", "fp32"] == 200


@pytest.mark.parametrize(
    "words, message",
    [
        (["--variants", "fp33"], "--variants fp33: choose from fp32, "),
        (["--networks", "resnet21"], "model=resnet21: no such model"),
        (["--attentions", "sa"], "attention/sa"),
        (["--rounds", "0"], "at least 1"),
        (["--steps", "0"], "at least 1"),
        (["--out", "/proc/version"], "not a table of this script"),
        (["attention=se"], "attention=se: the benchmark chooses this"),
        (["precision=bf16"], "precision=bf16: the benchmark chooses this"),
        (["data.mirror=false"], "data.mirror=false: the benchmark chooses this itself"),
        (["data=digits"], "data=digits: the benchmark chooses this"),
        (["threads=0"], "threads=0: must be"),
        (["lop=1"], "lop"),
        (["device=cuda"], "device=cuda: "),
    ],
)
def test_bad_options_end_in_one_message(words, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def dies(config, seconds):
    os._exit(1)


def test_the_process_of_a_side_that_dies_is_named():
    side = Side("resnet20", "fp32", words=["threads=1", "device=cpu"])
    side.loop = dies
    with pytest.raises(benchmark.UserError, match="has died"):
        side.turn()


def test_the_readme_and_the_recorded_rows_agree():
    recorded = pd.read_csv(RECORDED)
    assert list(recorded.columns) == COLUMNS and not recorded.duplicated(benchmark.KEY).any()
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"An epoch of training beside a plain PyTorch loop.*?results/benchmark.csv", readme
    )[0]
    epochs = recorded[(recorded["what"] == "epoch") & ~recorded["variant"].str.startswith("plain")]
    for network, title in (("resnet20", "ResNet-20"), ("densenet40", "DenseNet-40")):
        own = epochs[epochs["network"] == network]
        ratios = ", ".join(f"{row.ratio:.2f} ({row.variant})" for row in own.itertuples())
        assert f"{title} {ratios}" in said
    assert set(epochs["machine"]) == set(re.findall(r"cpu \(.*? threads\)", said))
    assert set(epochs["date"]) == set(re.findall(r"\d{4}-\d\d-\d\d", said))


@pytest.mark.parametrize("page", ["benchmark", "gpu"])
def test_the_commands_of_the_docs_are_understood(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    commands = re.findall(r"^ *python scripts/benchmark\.py(.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        options = parse(shlex.split(command, comments=True))
        benchmark.composed(options.networks[0], options.words)
        assert set(options.attentions) <= set(choices("attention"))
