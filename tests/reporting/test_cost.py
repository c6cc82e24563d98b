"""What the tables cost: counted by hand from the paper's grids, and summed from steps."""

import shutil
from pathlib import Path

import cost
import pandas as pd
import pytest

from lcm.reporting.cost import cells, cost_table, hours, images, steps

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


def test_the_least_time_of_a_gpu_is_its_arithmetic(tmp_path):
    shutil.copy(RESULTS / "complexity.csv", tmp_path)
    seconds, how = steps(tmp_path, on_card=True)
    assert seconds["resnet20", "none"] == pytest.approx(6 * 40_551_040 / 67e12, rel=1e-12)
    assert set(seconds) == {run[1:] for runs in cells(RESULTS).values() for run in runs}
    assert how.startswith("Computed, not measured")


def test_the_tables_say_what_is_measured_and_what_is_computed(tmp_path):
    for file in ("paper.csv", "complexity.csv"):
        shutil.copy(RESULTS / file, tmp_path)
    arms = [(f"resnet{depth}", arm) for depth in (20, 32) for arm in ("none", "lcm1", "lcm2")]

    def made(on_card):
        table = cost_table(tmp_path, on_card)
        return {row[0]: row[1:] for row in table.rows}, table.notes[0]

    def measure(device, seconds):
        rows = [(*arm, seconds, 64, device) for arm in arms]
        columns = ["model", "attention", "seconds_per_image", "batch", "device"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "cost.csv", index=False)

    rows, note = made(on_card=False)
    assert rows["Table 2"] == ["12", "–", "–", "–"] and note.startswith("Not measured yet")
    measure("cpu (X)", 0.001)
    rows, note = made(on_card=False)
    # 12 x 16 million images, a millisecond each: 53.3 h
    assert rows["Table 2"] == ["12", "53 h", "13 days", "22 days"] and "on cpu (X)" in note
    assert rows["Table 1"][1:] == ["–", "–", "–"] and rows["all"] == ["68", "–", "–", "–"]
    assert made(on_card=True)[0]["Table 2"] == ["12", "0.26 h", "2.6 h"]
    measure("NVIDIA H200", 0.0001)
    rows, note = made(on_card=True)
    assert rows["Table 2"] == ["12", "5.3 h", "53 h"] and "float32 on NVIDIA H200" in note
    assert made(on_card=False)[1].startswith("Not measured yet")


def test_the_command_measures_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "cells", lambda _: {2: {("cifar10", "resnet20", "lcm2")}})
    monkeypatch.setattr(cost, "STEPS", 1)
    monkeypatch.setattr(cost, "BATCHES", {"resnet20": 4})
    cost.main(["--results", str(tmp_path), "--device", "cpu"])
    (row,) = pd.read_csv(tmp_path / "cost.csv").itertuples(index=False)
    assert row[:2] == ("resnet20", "lcm2") and row.batch == 4 and row.device.startswith("cpu (")
    assert 1e-4 < row.seconds_per_image < 1
