"""What a run prints before it starts and when it is finished."""

import pytest

from lcm.runs.summary import best_and_last, result_line

RESULT = {"test_top1": 92.5, "test_top5": 99.8, "best_test_top1": 92.75, "best_epoch": 280}
PAPERS = {"data": "cifar10", "model": "resnet20", "attention": "none", "schedule": "cifar"}
STATE = PAPERS | {"epochs": 300, "deviations": {}}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, ""),
        ({"epochs": 400, "deviations": {"schedule.epochs": 400}}, "schedule.epochs=400"),
        ({"deviations": {"attention.reduction": 8}}, "attention.reduction=8"),
        ({"epochs": 10, "schedule": "short"}, "schedule=short, schedule.epochs=10"),
        (
            {"epochs": 5, "schedule": "short", "deviations": {"schedule.epochs": 5}},
            "schedule=short, schedule.epochs=5",
        ),
    ],
)
def test_a_deviation_from_the_papers_protocol_is_named(changes, difference):
    own, paper = result_line(STATE | {"result": RESULT} | changes).splitlines()
    epochs = changes.get("epochs", 300)
    assert (
        own == f"test top-1 92.50 %, top-5 99.80 % after the last of {epochs} epochs (best "
        "epoch 280: 92.75 %)"
    )
    words = f", under its own protocol; this run differs: {difference}" if difference else ""
    assert paper.startswith("the (retracted) paper prints top-1 9") and paper.endswith(
        f" % for this row{words}"
    )


def test_without_a_row_in_the_paper_there_is_one_line():
    line = result_line(STATE | {"data": "digits", "epochs": 1, "result": RESULT})
    assert line.endswith("after the last of 1 epoch (best epoch 280: 92.75 %)")


def test_the_last_epoch_is_reported_and_the_first_of_the_best():
    losses = {"train_loss": 1.0, "train_top1": 9.0, "test_loss": 2.0, "test_top5": 9.0, "lr": 0.1}
    rows = [
        {"epoch": epoch, "test_top1": top1, **losses}
        for epoch, top1 in enumerate([50.0, 70.0, 70.0, 60.0], 1)
    ]
    found = best_and_last(rows)
    assert (found["epoch"], found["test_top1"], found["best_epoch"], found["best_test_top1"]) == (
        4,
        60.0,
        2,
        70.0,
    )
    assert "lr" not in found
