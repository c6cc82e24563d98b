"""train.py with a training that takes milliseconds: what the sweep's tests start, as real
processes, to watch the sweep itself.

FAKE_SECONDS: how long an epoch takes (0.01). FAKE_FAULT: runs whose directory has this text in it
fail in their 2nd epoch. Every epoch leaves a line in the run's trained.txt: who trained it.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hydra

import train
from lcm import cli
from lcm.config.compose import CONFIGS
from lcm.errors import NotFinite


def fit(config, run):
    """What train.fit does, without a network: the run's own record and checkpoints."""
    few = SimpleNamespace(images=2)
    data = SimpleNamespace(
        fingerprint="none", train=lambda *_: few, test=lambda *_: few, num_classes=2
    )
    complexity = SimpleNamespace(params=1, gfloat=1.0, macs=1, uncounted=[])
    run.begin(data, complexity, 1, "none")
    config["tensorboard"] = False  # it takes longer than all else here
    nothing = SimpleNamespace(restore=lambda saved: None, snapshot=lambda epoch: {})
    for epoch, _ in run.epochs(nothing, [few]):
        with open(run.directory / "trained.txt", "a") as trained:
            trained.write(json.dumps({"epoch": epoch, "process": os.getpid()}) + "\n")
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0.01)))
        if epoch == 2 and os.environ.get("FAKE_FAULT", "no fault") in str(run.directory):
            raise NotFinite("the loss of a test is not finite")
        row = {"train_loss": 1 / epoch, "train_top1": 50.0, "test_loss": 1 / epoch}
        row |= {"test_top1": 50.0 + config["seed"], "test_top5": 99.0, "lr": 0.1}
        run.record(epoch, row)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(cfg):
    train.fit = fit  # here: a launcher may call this in a process of its own
    return cli.run_task(train.train, cfg)


if __name__ == "__main__":
    cli.main(main)
