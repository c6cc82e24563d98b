"""The benchmark: its sides do the same work on the same images; its file, and what is said of it."""

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


class Pipe:
    """The pipe to a side that works in this process: some turns of one epoch."""

    def __init__(self, turns):
        self.waiting = [0] * turns + [None]
        self.sent = []

    def recv(self):
        return self.waiting.pop(0)

    def send(self, answer):
        self.sent.append(answer)


def config(steps=2, batch=4, **data):
    words = ["threads=1", "device=cpu", "model.layers=8", f"schedule.batch_size={batch}"]
    made = benchmark.composed("resnet20", words, steps)
    made["data"] |= data
    return made | {"allocator": False}


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


@pytest.fixture
def seen(monkeypatch):
    """A function: the images that a side sees in some turns."""

    def of(loop, config, turns=1):
        network = Watched()
        for module in (train, benchmark):
            monkeypatch.setattr(module, "build_network", lambda *_, **__: network)
        monkeypatch.setattr(train, "count", lambda *_: None)
        loop(Pipe(turns), config)
        return torch.cat(network.seen)

    return of


def in_order(images):
    """Rows sorted by their first 8 pixels."""
    return images[sorted(range(len(images)), key=lambda i: images[i, :8].tolist())]


@pytest.mark.parametrize("loop", [project, plain])
def test_a_side_sees_every_image_once_an_epoch_normalised(seen, loop, monkeypatch):
    pixels = benchmark.Invented(8, 32).train(4, 0).resident.images.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (benchmark.MEAN, benchmark.STD))
    expected = (pixels / 255 - mean) / std
    expected = in_order(expected.flatten(1))
    clocks = []
    monkeypatch.setattr(benchmark, "Counter", lambda: clocks.append(Counter()) or clocks[-1])
    found = seen(loop, config(pad=0, mirror=False), turns=2)
    assert len(found) == 16 and [clock["images"] for clock in clocks] == [8, 8]
    assert all(0 < clock["step"] <= clock["epoch"] for clock in clocks)
    for epoch in (found[:8], found[8:]):
        torch.testing.assert_close(in_order(epoch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loop", [project, plain])
def test_a_side_crops_after_padding_and_mirrors(seen, loop):
    """One image, many epochs: every view is one of 162 windows, and most of these are seen."""
    made = config(steps=1, batch=2)
    pixels = benchmark.Invented(2, 32).train(2, 0).resident.images[0].permute(2, 0, 1)
    padded = nn.functional.pad(pixels, [4] * 4)
    windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    windows += [window.flip(2) for window in windows]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (benchmark.MEAN, benchmark.STD))
    known = torch.stack([((window / 255 - mean) / std).flatten() for window in windows])
    views = seen(loop, made, turns=300)
    distances, nearest = torch.cdist(views, known).min(1)
    ours = distances < 0.1
    assert ours.sum() == 300  # the other 300 are views of the other image
    assert 115 < len(set(nearest[ours].tolist())) <= 162  # 137 expected, deviation 4


def test_both_sides_take_the_same_steps(monkeypatch):
    """The only batch of an epoch has all images: the same weights up to rounding."""
    networks = []

    def kept(*args, **keys):
        networks.append(build_network(*args, **keys))
        return networks[-1]

    for module in (train, benchmark):
        monkeypatch.setattr(module, "build_network", kept)
    for loop in (project, plain):
        loop(Pipe(3), config(steps=1, batch=32, pad=0, mirror=False))
    ours, theirs = (dict(network.named_parameters()) for network in networks)
    before = dict(build_network("resnet20", seed=0, layers=8).named_parameters())
    for name, start in before.items():
        moved = (theirs[name] - start).norm()
        assert (ours[name] - theirs[name]).norm() < 0.05 * moved, name


def test_a_turn_has_as_many_epochs_as_its_seconds_ask_for():
    pipe = Pipe(0)
    pipe.waiting = [0, 3, None]
    clocks = []
    for clock in benchmark.turns(pipe):
        clock.update(images=10, step=1.0, epoch=2.0)
        clocks.append(id(clock))
    assert len(clocks) == 3 and clocks[1] == clocks[2]
    assert pipe.sent == [{"step": 10.0, "epoch": 5.0}] * 2


def reports(*rounds):
    return [[{"step": rate, "epoch": rate / 2} for rate in rates] for rates in rounds]


def sides(*names):
    made = [Side("resnet20", "fp32", name, ["threads=1"]) for name in names]
    for side in made:
        side.machine = "X"
    return made


def test_ratios_are_taken_within_rounds():
    """The second round is slow for both: neither the ratio of the medians nor its mean."""
    found = list(rows(sides("none", "se"), reports([100, 150], [50, 100], [110, 176]), "epoch"))
    assert [row["images_per_second"] for row in found] == ["50", "75"]
    assert [found[1][key] for key in ("ratio", "low", "high")] == ["1.6", "1.5", "2"]
    found = list(rows(sides("none", "se"), reports([100, 80], [50, 50], [90, 45]), "attention"))
    assert [found[1][key] for key in ("ratio", "low", "high", "rounds")] == ["1.25", "1", "2", "3"]


def test_the_quick_run(tmp_path):
    """With its processes."""
    file = tmp_path / "b.csv"
    main(["--quick", "device=cpu", "threads=1", "--out", str(file)])
    table = pd.read_csv(file)
    assert list(table.columns) == COLUMNS
    assert table["what"].tolist() == ["step", "step", "epoch", "epoch"]
    assert [name.split()[0] for name in table["variant"]] == ["plain", "fp32"] * 2
    assert (table["images_per_second"] > 0).all() and (table["rounds"] == 1).all()
    assert table["machine"].str.fullmatch(r"cpu \(.+, 1 thread\)").all()


def test_rows_of_other_keys_stay_those_of_the_same_are_replaced(tmp_path, monkeypatch):
    def measured(sides, *_):
        for side in sides:
            side.machine = "X"
        return reports([first + index for index, _ in enumerate(sides)])

    monkeypatch.setattr(benchmark, "rounds", measured)
    names = ["what", "network", "attention", "variant"]
    words = ["--out", str(tmp_path / "b.csv"), "device=cpu"]
    first = 100
    main([*words, "--networks", "resnet20,densenet40", "--variants", "fp32,fp32 compiled"])
    before = pd.read_csv(tmp_path / "b.csv").set_index(names)["images_per_second"]
    first = 200
    main([*words, "--networks", "resnet20", "--variants", "fp32", "--attentions", "se,lcm1"])
    after = pd.read_csv(tmp_path / "b.csv").set_index(names)["images_per_second"]
    assert len(before) == 2 * 2 * 3 and len(after) == 12 + 3
    assert after["epoch", "resnet20", "none", "fp32"] == 201 / 2
    assert after["epoch", "resnet20", "none", "fp32 compiled"] == 102 / 2
    assert after["step", "densenet40", "none", "fp32"] == 101
    assert after["attention", "resnet20", "lcm1", "fp32"] == 202


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
        (["--quick", "device=cuda"], "device=cuda: "),
    ],
)
def test_bad_options_end_in_one_message(words, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_process_of_a_side_that_dies_is_named():
    with Side("resnet20", "fp32", words=["threads=1", "device=cpu"]) as side:
        side.process.kill()
        with pytest.raises(benchmark.UserError, match="has died"):
            side.get_ready()


def test_the_readme_and_the_recorded_rows_agree():
    table = pd.read_csv(RECORDED)
    assert list(table.columns) == COLUMNS and not table.duplicated(benchmark.KEY).any()
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(
        r"An epoch of training beside a plain PyTorch loop.*?results/benchmark.csv", readme
    )[0]
    epochs = table[(table["what"] == "epoch") & ~table["variant"].str.startswith("plain")]
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
