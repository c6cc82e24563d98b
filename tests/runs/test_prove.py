"""Small portions of the proofs, and that they would see a difference."""

import json
import shutil

import prove
import pytest
import torch
from tiny import compare_runs, directory_of, run

from lcm.training import checkpoint

pytestmark = pytest.mark.commands


def test_five_kills_and_not_a_byte_differs(tiny, tmp_path):
    hits, differences = prove.resume(tmp_path, 5, 0)
    assert hits.total() == 5 and set(hits) <= set(prove.PHASES) and differences == []


def test_three_races_and_one_trains_in_each(tiny, tmp_path):
    config = tiny("attention=none", "schedule.epochs=1")
    for number in range(3):
        ended, fine = prove.race(tmp_path, config, number)
        assert fine, ended


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
