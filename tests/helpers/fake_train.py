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
from lcm.errors import NotFinite, Stopped
from lcm.runs.summary import best_and_last
from lcm.training import signals  # a launcher would copy STOP itself to its process


def fit(config, run):
    """What train.fit does, without a network: a checkpoint is metrics.jsonl itself."""
    few = SimpleNamespace(images=2)
    data = SimpleNamespace(
        fingerprint="none", train=lambda *_: few, test=lambda *_: few, num_classes=2
    )
    metrics = run.directory / "metrics.jsonl"
    run.begin(data, SimpleNamespace(params=1, gfloat=1.0, macs=1), 1, "none")
    with signals.STOP.patient(), open(metrics, "a+") as stream:
        stream.seek(0)
        rows = [json.loads(line) for line in stream]
        for epoch in range(len(rows) + 1, config["schedule"]["epochs"] + 1):
            with open(run.directory / "trained.txt", "a") as trained:
                trained.write(json.dumps({"epoch": epoch, "process": os.getpid()}) + "\n")
            time.sleep(float(os.environ.get("FAKE_SECONDS", 0.01)))
            if epoch == 2 and os.environ.get("FAKE_FAULT", "no fault") in str(run.directory):
                raise NotFinite("the loss of a test is not finite")
            row = {"epoch": epoch, "train_loss": 1 / epoch, "train_top1": 50.0}
            row |= {"test_loss": 1 / epoch, "test_top1": 50.0 + config["seed"], "test_top5": 99.0}
            rows.append(row | {"lr": 0.1, "seconds": 0.5 * epoch})
            print(json.dumps(rows[-1]), file=stream, flush=True)
            print(f"epoch {epoch}", flush=True)
            if signals.STOP.requested:
                raise Stopped(signals.STOP.requested, f"saved after epoch {epoch}")
        run.state["result"] = best_and_last(rows)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(cfg):
    train.fit = fit  # here: a launcher may call this in a process of its own
    return cli.run_task(train.train, cfg)


if __name__ == "__main__":
    cli.main(main)
