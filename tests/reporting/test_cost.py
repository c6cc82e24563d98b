"""What the tables cost: counted by hand from the paper's grids, and an exact sum of measured steps."""

import shutil
from pathlib import Path

import cost
import pandas as pd
import pytest

from lcm.reporting.cost import cells, computed_steps, cost_block, cost_cpu_block, hours, images

RESULTS = Path(__file__).resolve().parents[2] / "results"
CELLS = {1: 18, 2: 12, 3: 12, 4: 12, 5: 18}


def test_the_papers_runs_of_one_seed():
    assert {table: len(runs) for table, runs in cells(RESULTS).items()} == CELLS
    assert (
        len(set().union(*cells(RESULTS).values())) == 68
    )  # DenseNet-100, none and LCM2, stands in 1, and in 3 or 4


def test_time_is_steps_times_images_times_epochs(tmp_path):
    assert images("cifar10") == pytest.approx(300 * (50_000 + 10_000 / 3))
    assert images("mini_imagenet") == pytest.approx(100 * (50_000 + 10_000 / 3))
    runs = {
        ("cifar10", "resnet20", "none"),
        ("cifar100", "resnet20", "none"),
        ("mini_imagenet", "resnet50", "se"),
    }
    seconds = {("resnet20", "none"): 1e-3, ("resnet50", "se"): 1e-2}
    assert hours(runs, seconds) == pytest.approx((2 * 16e6 * 1e-3 + 16e6 / 3 * 1e-2) / 3600)
    assert hours({("cifar10", "resnet32", "none")}, seconds) is None


def test_the_least_time_of_a_gpu_is_its_arithmetic():
    seconds = computed_steps(RESULTS)
    assert seconds["resnet20", "none"] == pytest.approx(6 * 40_551_040 / 67e12, rel=1e-12)
    assert set(seconds) == {run[1:] for runs in cells(RESULTS).values() for run in runs}


def rows_of(block):
    return {
        line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[1:]
        for line in block.splitlines()[2:8]
    }


def test_the_blocks_say_what_is_measured_and_what_is_computed(tmp_path):
    shutil.copy(RESULTS / "paper.csv", tmp_path)
    assert cost_block(tmp_path).startswith("Not computed yet")
    assert cost_cpu_block(tmp_path).startswith("Not measured yet")
    shutil.copy(RESULTS / "complexity.csv", tmp_path)
    pairs = [
        (f"resnet{depth}", attention)
        for depth in (20, 32)
        for attention in ("none", "lcm1", "lcm2")
    ]

    def measure(device, seconds):
        lines = [f"{model},{attention},{seconds},64,{device}" for model, attention in pairs]
        (tmp_path / "cost.csv").write_text(
            "\n".join(["model,attention,seconds_per_image,batch,device", *lines]) + "\n"
        )

    measure("cpu (X)", 0.001)
    rows, block = rows_of(cost_cpu_block(tmp_path)), cost_block(tmp_path)
    assert rows["Table 2"] == [
        "12",
        "53 h",
        "13 days",
        "22 days",
    ]  # 12 x 16 million images, a millisecond each: 53.3 h
    assert rows["Table 1"][1:] == ["–", "–", "–"] and rows["all"] == ["68", "–", "–", "–"]
    assert "on cpu (X)" in cost_cpu_block(tmp_path)
    assert "Computed, not measured" in block and rows_of(block)["Table 2"] == [
        "12",
        "0.26 h",
        "2.6 h",
    ]
    measure("NVIDIA H200", 0.0001)
    assert rows_of(cost_block(tmp_path))["Table 2"] == ["12", "5.3 h", "53 h"]
    assert "Measured: a training step in float32 on NVIDIA H200" in cost_block(tmp_path)
    assert cost_cpu_block(tmp_path).startswith("Not measured yet")


def test_the_command_measures_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "cells", lambda _: {2: {("cifar10", "resnet20", "lcm2")}})
    monkeypatch.setattr(cost, "STEPS", 1)
    monkeypatch.setattr(cost, "BATCHES", {"resnet20": 4})
    cost.main(["--results", str(tmp_path), "--device", "cpu"])
    (row,) = pd.read_csv(tmp_path / "cost.csv").itertuples(index=False)
    assert row[:2] == ("resnet20", "lcm2") and row.batch == 4 and row.device.startswith("cpu (")
    assert 1e-4 < row.seconds_per_image < 1
