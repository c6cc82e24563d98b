"""train.py with a training that takes milliseconds: what the sweep's tests start, as real processes, to watch the sweep itself.

FAKE_SECONDS: how long an epoch takes (0.01). FAKE_FAULT: runs whose directory has this text in it fail in their 2nd epoch.
Every epoch leaves a line in the run's trained.txt: which process trained it.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hydra

from lcm import cli as launch
from lcm.config.options import CONFIGS
from lcm.errors import NotFinite, Stopped
from lcm.runs.directory import run_directory
from lcm.runs.lock import owner
from lcm.runs.state import new_state, read_state, write_state


def train(config):
    directory = run_directory(config)
    with owner(directory):
        state = read_state(directory)
        if state.get("state") == "finished":
            return state
        with launch.STOP.listening() as stop:
            facts = {
                "params": 1,
                "gfloat": 1.0,
                "macs": 1,
                "versions": {},
                "device": "none",
                "data_fingerprint": "none",
            }
            state = (state or new_state(config, **facts)) | {"state": "running", "message": None}
            write_state(directory, state)
            metrics = directory / "metrics.jsonl"
            rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
            outcome = {"state": "failed"}
            try:
                with stop.patient():
                    fit(config, directory, rows, stop)
                outcome = {"state": "finished", "result": {**rows[-1], "best_test_top1": 99.0, "best_epoch": 1}}
            except Stopped as request:
                outcome = {"state": "stopped", "message": str(request)}
                raise
            except Exception as error:
                outcome["message"] = str(error)
                raise
            finally:
                write_state(directory, state | outcome | {"seconds": rows[-1]["seconds"] if rows else 0.0})
    return read_state(directory)


def fit(config, directory, rows, stop):
    for epoch in range(len(rows) + 1, config["schedule"]["epochs"] + 1):
        with open(directory / "trained.txt", "a") as trained:
            trained.write(json.dumps({"epoch": epoch, "process": os.getpid()}) + "\n")
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0.01)))
        if epoch == 2 and os.environ.get("FAKE_FAULT", "no fault") in str(directory):
            raise NotFinite("the loss of a test is not finite")
        losses = {"train_loss": 1 / epoch, "train_top1": 50.0, "test_loss": 1 / epoch}
        rows.append({"epoch": epoch, "step": epoch, **losses, "test_top1": 50.0 + config["seed"], "test_top5": 99.0})
        rows[-1] |= {"lr": 0.1, "images_per_second": 1.0, "seconds": 0.5 * epoch}
        with open(directory / "metrics.jsonl", "a") as metrics:
            metrics.write(json.dumps(rows[-1]) + "\n")
        print(f"epoch {epoch}", flush=True)
        if stop.requested:
            raise Stopped(stop.requested, f"saved after epoch {epoch}")


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(cfg):
    return launch.run_task(train, cfg)


if __name__ == "__main__":
    launch.main(main)
