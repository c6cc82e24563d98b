"""What a user reads while a run trains: estimates that hold after any continuation."""

import re

import pytest
import torch

from lcm.training import progress
from lcm.training.progress import Progress, clock
from lcm.training.state import Sums

ROW = {
    "lr": 0.1,
    "train_loss": 1.0,
    "train_top1": 50.0,
    "test_loss": 1.0,
    "test_top1": 50.0,
    "test_top5": 90.0,
}


@pytest.fixture
def now(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: moment[0])
    return moment


class Batches:
    """100 steps an epoch, the last of 36 images."""

    images, batch_size = 6372, 64

    def __len__(self):
        return 100


def walk(now, shown, epochs, first=0, step=1.0, evaluation=20.0, slow=0.0):
    """Train on a fake clock, from step `first` of the first of `epochs`; the process's first step
    is slow.
    """
    for epoch in epochs:
        for done in range(first + 1 if epoch == epochs[0] else 1, 101):
            now[0] += step + slow
            slow = 0
            shown.step(epoch, done)
        now[0] += evaluation
        shown.epoch(ROW | {"epoch": epoch, "images_per_second": 64.0})


@pytest.mark.parametrize(
    "epochs, keys",
    [
        ([1], {}),
        ([3, 4], {"first": 90, "slow": 500.0}),  # its first step compiles
        ([7], {"slow": 60.0, "evaluation": 100.0}),  # an evaluation as long as the training
        ([2, 3, 4], {"first": 50, "evaluation": 0.5}),
    ],
)
def test_what_is_left_is_near_the_truth(now, capsys, epochs, keys):
    walk(now, Progress("lines", 300, Batches()), epochs, **keys)
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"images/s  (?:(\d+) h )?(\d+) min(?: \d+ s)? left", line)
    said = 3600 * int(found[1] or 0) + 60 * int(found[2])
    truth = (300 - epochs[-1]) * (100 + keys.get("evaluation", 20.0))
    assert truth / 1.3 <= said <= truth * 1.3


@pytest.mark.parametrize("first", [100, 99, 1])
def test_a_part_of_an_epoch_is_no_estimate(now, capsys, first):
    """Continued in step 2 or 100 of epoch 3, or in the evaluation after it: no speed is known."""
    shown = Progress("lines", 5, Batches())
    walk(now, shown, [3], first=first)
    assert capsys.readouterr().out.endswith("  64 images/s\n")
    shown.epoch(ROW | {"epoch": 3, "images_per_second": 0.0})
    assert capsys.readouterr().out.endswith("top-5 90.00\n")


def test_a_long_epoch_says_what_is_left_after_ten_seconds_and_every_ten_minutes(now, capsys):
    """In a log; the process's first step, which is slow, is left out."""
    shown = Progress("lines", 2, Batches())
    for step in range(1, 101):
        now[0] += 100 if step == 1 else 30
        shown.step(1, step)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "epoch   1/2  step 2/100  1 h 39 min left"
    assert lines[1] == "epoch   1/2  step 23/100  1 h 28 min left"
    part = Progress("lines", 2, Batches())
    for step in (50, 51):  # continued, where no speed is known
        now[0] += 30
        part.step(1, step)
    assert capsys.readouterr().out == "epoch   1/2  step 51/100\n"


def test_a_bar_shows_images_loss_and_accuracy():
    shown, sums = Progress("bar", 2, Batches()), Sums("cpu")
    sums.values.copy_(torch.tensor([6.4, 32.0, 64.0]))
    for step in (99, 100):  # a run that is continued in step 98
        shown.step(2, step, sums)
    text = str(shown.bar)
    shown.clear()
    assert text.startswith("epoch 2/2: 100%") and "6372/6372" in text
    assert "loss 0.1000, top-1 50.00 %" in text


@pytest.mark.parametrize(
    "seconds, words", [(0, "0 s"), (59.6, "1 min 0 s"), (90, "1 min 30 s"), (7300, "2 h 1 min")]
)
def test_clock(seconds, words):
    assert clock(seconds) == words
