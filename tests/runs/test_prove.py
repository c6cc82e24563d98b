"""Small portions of the proofs, and that they would see a difference."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import compare_runs, directory_of, run

from lcm.training import checkpoint

SCRIPTS = Path(__file__).resolve().parents[1] / "proofs"


def prove(script, *arguments):
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_kills_and_not_a_byte_differs():
    output = prove("prove_resume.py", "--kills", "10")
    assert re.search("^10 kills, 0 differences", output, re.MULTILINE)
    assert (
        sum(int(count) for count in re.findall(r"^ *(\d+) kills in ", output, re.MULTILINE)) == 10
    )


def test_ten_races_and_one_trains_in_each():
    assert "\n10 of 10 races: exactly one trained" in prove("prove_owner.py", "--races", "10")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    config = tiny(f"runs={folder}", "attention=se", "schedule.epochs=1")
    assert run(folder, config).code == 0
    return directory_of(config)


def test_one_bit_of_one_weight_is_seen(finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "copy")
    assert compare_runs(finished, directory) == []
    saved = checkpoint.read(directory / checkpoint.NAME)
    bits = saved["model"]["conv.weight"].view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    checkpoint.save(directory, saved)
    assert compare_runs(finished, directory) == [f"{directory}: model conv.weight"]


@pytest.mark.parametrize("key", ["train_loss", "test_top5", "lr"])
def test_the_last_digit_of_a_metric_is_seen(finished, tmp_path, key):
    directory = shutil.copytree(finished, tmp_path / "copy")
    row = json.loads((directory / "metrics.jsonl").read_text())
    row[key] += row[key] * 2**-52
    (directory / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 0}) + "\n")
    assert compare_runs(finished, directory) == [f"{directory}: metrics.jsonl line 1"]
