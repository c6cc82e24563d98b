"""What a user reads while a run trains: estimates that hold for a run that is continued anywhere."""

import pytest
import torch

from lcm.training import progress
from lcm.training.progress import Progress, clock

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


@pytest.mark.parametrize("first", [0, 90])
def test_what_is_left_after_an_epoch_comes_from_the_steps_that_were_made(now, capsys, first):
    """100 steps an epoch, a second each and evaluation included; continued in step 90 of epoch 3, of 5."""
    shown = Progress("lines", 5, 100, 64)
    for step in range(first + 1, 101):
        now[0] += 1
        shown.step(3, step, None)
    shown.epoch(ROW | {"epoch": 3, "images_per_second": 64.0})
    assert capsys.readouterr().out.splitlines()[-1].endswith("  64 images/s  3 min 20 s left")


def test_without_a_step_nothing_is_estimated(now, capsys):
    """Stopped in the evaluation after epoch 3, and continued there."""
    shown = Progress("lines", 5, 100, 64)
    now[0] += 10
    shown.epoch(ROW | {"epoch": 3, "images_per_second": 0.0})
    assert capsys.readouterr().out.endswith("  0 images/s\n")


def test_the_estimate_leaves_the_first_step_out(now, capsys):
    shown = Progress("lines", 2, 10, 64)
    for step in range(1, 11):
        now[0] += 100 if step == 1 else 1
        shown.step(1, step, None)
    assert (
        capsys.readouterr().out == "estimated time: 14 s for training, and evaluation on top\n"
    )  # after step 6 of 20


def test_a_bar_shows_images_loss_and_accuracy():
    shown = Progress("bar", 2, 4, 64)
    for step in (3, 4):  # a run that is continued in step 2
        shown.step(2, step, torch.tensor([6.4, 32.0, 64.0]))
    text = str(shown.bar)
    shown.clear()
    assert (
        text.startswith("epoch 2/2: 100%")
        and "256/256" in text
        and "loss 0.1000, top-1 50.00 %" in text
    )


def test_clock():
    assert [clock(s) for s in (0, 59.6, 90, 3600, 7300)] == [
        "0 s",
        "1 min 0 s",
        "1 min 30 s",
        "1 h 0 min",
        "2 h 1 min",
    ]
