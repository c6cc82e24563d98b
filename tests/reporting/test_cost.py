"""What the tables cost: counted by hand from the paper's grids, and an exact sum of measured steps."""

import shutil
from pathlib import Path

import pytest

from lcm.config.options import load
from lcm.reporting.cost import EPOCHS, cells, cost_block, floor, hours, images
from lcm.reporting.selection import PAPER_SCHEDULE

RESULTS = Path(__file__).resolve().parents[2] / "results"
CELLS = {1: 18, 2: 12, 3: 12, 4: 12, 5: 18}


def test_the_papers_runs_of_one_seed():
    assert {table: len(runs) for table, runs in cells(RESULTS).items()} == CELLS
    assert len(set().union(*cells(RESULTS).values())) == 68  # DenseNet-100, none and LCM2, stands in 1, and in 3 or 4


def test_epochs_are_those_of_the_schedules():
    assert {data: load("schedule", PAPER_SCHEDULE[data])["epochs"] for data in EPOCHS} == EPOCHS


def test_time_is_steps_times_images_times_epochs(tmp_path):
    assert images("cifar10") == pytest.approx(300 * (50_000 + 10_000 / 3))
    assert images("mini_imagenet") == pytest.approx(100 * (50_000 + 10_000 / 3))
    runs = {("cifar10", "resnet20", "none"), ("cifar100", "resnet20", "none"), ("mini_imagenet", "resnet50", "se")}
    seconds = {("resnet20", "none"): 1e-3, ("resnet50", "se"): 1e-2}
    assert hours(runs, seconds) == pytest.approx((2 * 16e6 * 1e-3 + 16e6 / 3 * 1e-2) / 3600)
    assert hours({("cifar10", "resnet32", "none")}, seconds) is None


def test_the_floor_of_a_gpu_is_its_arithmetic():
    seconds = floor(RESULTS)
    assert seconds["resnet20", "none"] == pytest.approx(6 * 40_813_184 / 67e12, rel=0.01)
    assert {key[:2] for key in seconds} == {run[1:] for runs in cells(RESULTS).values() for run in runs}


def test_the_block_says_what_is_measured_and_what_is_not(tmp_path):
    for name in ("paper.csv", "complexity.csv"):
        shutil.copy(RESULTS / name, tmp_path)
    assert cost_block(tmp_path, on_cpu=True) == "Not measured yet: `python scripts/cost.py`."
    lines = [
        f"resnet{depth},{attention},0.001,64,cpu (X)" for depth in (20, 32) for attention in ("none", "lcm1", "lcm2")
    ]
    (tmp_path / "cost.csv").write_text("\n".join(["model,attention,seconds_per_image,batch,device", *lines]) + "\n")
    rows = {
        line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[1:4]
        for line in cost_block(tmp_path, on_cpu=True).splitlines()[2:8]
    }
    assert rows["Table 2"] == ["12", "53 h", "13 days"]  # 12 x 16 million images at a millisecond: 53.3 hours
    assert rows["Table 1"][1:] == ["–", "–"] and rows["all"] == ["68", "–", "–"]
    assert "on cpu (X)" in cost_block(tmp_path, on_cpu=True) and "Computed for an H200, not measured" in cost_block(
        tmp_path
    )
