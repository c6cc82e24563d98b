"""Small portions of the proofs, and that they would see a difference."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_one_bit_of_a_weight_and_the_last_digit_of_a_metric_are_seen(tiny, tmp_path):
    config = tiny(f"runs={tmp_path}", "attention=se", "schedule.epochs=1")
    assert run(tmp_path, config).code == 0
    finished = directory_of(config)
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert compare_runs(finished, copy) == []
    saved = checkpoint.read(copy / checkpoint.NAME)
    saved["model"]["conv.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1
    checkpoint.save(copy, saved)
    row = json.loads((copy / "metrics.jsonl").read_text())
    row["train_loss"] += row["train_loss"] * 2**-52
    (copy / "metrics.jsonl").write_text(json.dumps(row | {"seconds": 0}) + "\n")
    differing = [f"{copy}: metrics.jsonl line 1", f"{copy}: model conv.weight"]
    assert compare_runs(finished, copy) == differing
