"""A run that commit b6be2a3 began is continued: the names in a checkpoint are part of the format.

stored/b6be2a3 holds a DenseNet of 10 layers with LCM2 on the digits, stopped by SIGTERM in step 5
of its second and last epoch, and `whole.jsonl`, the record of the same run that nobody stopped:

    python train.py model=densenet40 model.layers=10 model.growth_rate=2 attention=lcm2 \
        schedule.epochs=2 threads=1 tensorboard=false device=cpu
"""

import json
import shutil
from pathlib import Path

import pytest
from hydra_config import composed

from lcm.runs.directory import run_directory
from train import train

STORED = Path(__file__).parent / "stored" / "b6be2a3"
WORDS = ["model=densenet40", "model.layers=10", "model.growth_rate=2", "attention=lcm2"]
SETTINGS = ["schedule.epochs=2", "threads=1", "tensorboard=false", "device=cpu"]


def test_it_goes_on_where_it_was_and_ends_as_the_whole_run(tmp_path, capsys):
    config = composed(*WORDS, *SETTINGS, f"runs={tmp_path}")
    directory = run_directory(config)
    directory.mkdir(parents=True)
    for name in ("checkpoint.pt", "metrics.jsonl", "run.json"):
        shutil.copy(STORED / name, directory)
    state = train(config)
    assert "continuing  from epoch 2, step 5" in capsys.readouterr().out
    assert state["state"] == "finished" and state["interruptions"] == 1
    assert state["seconds"] > 3.337  # those before the interruption
    ours, whole = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (directory / "metrics.jsonl", STORED / "whole.jsonl")
    )
    # Another processor rounds differently; the test loss was computed with folded batch norms then.
    for here, there in zip(ours, whole, strict=True):
        for key in ("train_loss", "train_top1", "test_loss", "test_top1"):
            assert here[key] == pytest.approx(there[key], rel=2e-2), key
    assert ours[0] == whole[0] | {k: ours[0][k] for k in ("images_per_second", "seconds")}
