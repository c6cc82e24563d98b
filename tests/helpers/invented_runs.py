"""Run directories for the tests of reporting: invented numbers in the form that train.py writes."""

import functools
import hashlib
import json
import random
import shutil
from pathlib import Path

import pandas as pd

from lcm.config.compose import load_all, plain
from lcm.reporting.runs import collect

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
STORED = ROOT / "tests" / "reporting" / "stored"
PARAMS = {
    "none": 269722,
    "lcm1": 277972,
    "lcm2": 277972,
    "se": 278500,
    "cbam": 279700,
    "nonlocal": 271000,
    "gc": 278484,
}


SOME = {"data": "digits", "model": "resnet20", "attention": "none", "schedule": "digits"}
DIVERGED = "the loss stopped being a finite number in epoch 2"
ENVIRONMENT = {
    "versions": {"python": "3.11.2", "torch": "2.6.0", "lcm": "0.1.0"},
    "device": "cpu (simulated)",
    "data_fingerprint": "f00d",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "host": "somewhere",
}


def invented_metrics(epochs, top1, noise):
    """The lines of a metrics.jsonl whose last epoch has the test accuracy `top1`."""
    for epoch in range(1, epochs + 1):
        left = (epochs - epoch) / epochs
        yield {
            "epoch": epoch,
            "step": 782 * epoch,
            "train_loss": 0.05 + 2 * left + noise.random() / 100,
            "train_top1": round(99.5 - 60 * left - noise.random() / 10, 3),
            "test_loss": 0.3 + 1.5 * left + noise.random() / 100,
            "test_top1": round(top1 - 50 * left - (left > 0) * noise.random(), 2),
            "test_top5": round(min(100, top1 + (100 - top1) * 0.9), 2),
            "lr": 0.1,
            "images_per_second": 1000 * noise.random(),
            "seconds": 10 + noise.random(),
        }


def config_of(names, deviations):
    """The config of the names {group: name} with its deviations; of an invented name, the name
    alone."""
    known = {group: name for group, name in names.items() if name in load_all(group)}
    config = plain({group: {"name": name} for group, name in (SOME | known).items()})
    config |= {group: {"name": name} for group, name in names.items() if group not in known}
    for key, value in deviations.items():
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, config)[last] = value
    return config


def invented_run(
    folder, data="cifar10", model="resnet20", attention="none", seed=0, top1=92.0, **changes
):
    """Write one run directory; returns it.

    `changes`: schedule, epochs, deviations, and whatever else run.json has.
    """
    facts = {
        "schedule": "cifar",
        "precision": "fp32",
        "epochs": 3,
        "state": "finished",
        "deviations": {},
    } | changes
    varied = [facts[key] for key in ("schedule", "precision", "epochs", "deviations")]
    identity = "".join(map(str, [data, model, attention, seed, *varied]))
    digest = hashlib.sha256(identity.encode()).hexdigest()
    name = f"{data}/{model}/{attention}/seed{seed}-{digest[:8]}"
    metrics = list(invented_metrics(facts["epochs"], top1, random.Random(identity)))
    best = max(metrics, key=lambda row: row["test_top1"])
    last = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
    result = {key: metrics[-1][key] for key in last} | {
        "best_test_top1": best["test_top1"],
        "best_epoch": best["epoch"],
    }
    finished = facts["state"] == "finished"
    names = {"data": data, "model": model, "attention": attention, "schedule": facts["schedule"]}
    config = config_of(names, facts["deviations"])
    config |= {"seed": seed, "precision": facts["precision"], "runs": str(folder)}
    config["data"]["root"] = "/home/somebody/data"
    run = {
        "message": None,
        "run": name,
        "data": data,
        "model": model,
        "attention": attention,
        "seed": seed,
        "compile": False,
        "config": config,
        "config_hash": digest,
        "params": PARAMS.get(attention, 280000),
        "gfloat": 0.041306,
        "macs": 40813184,
        **ENVIRONMENT,
        "result": result if finished else None,
        "start": "2026-01-02T03:04:05+00:00",
        "end": "2026-01-02T03:05:05+00:00" if finished else None,
        "seconds": 60.25,
    } | facts
    directory = Path(folder) / name
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return directory


def edit(directory, **changes):
    """Change keys of a run.json: `key=value`, or `config__data=...` for a key below another."""
    file = Path(directory) / "run.json"
    run = json.loads(file.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        functools.reduce(dict.__getitem__, parents, run)[last] = value
    file.write_text(json.dumps(run))


def results_of(folder, runs=()):
    """A folder of results with the given files, the plans and the collected `runs`, each the
    keywords of an `invented_run`."""
    results = folder / "results"
    shutil.copytree(RESULTS / "plans", results / "plans")
    for name in ("paper.csv", "claims.yaml", "power.csv"):
        shutil.copy(RESULTS / name, results)
    shutil.copy(STORED / "complexity.csv", results)
    for keywords in runs:
        invented_run(folder / "runs", **keywords)
    if runs:
        collect(folder / "runs", results)
    return results


def more(runs, mask, **changes):
    """`runs` and, with changes, those of the mask again, under other names."""
    return pd.concat(
        [runs, runs[mask].assign(run=runs["run"] + str(len(runs)), **changes)], ignore_index=True
    )


def changed(runs, mask, **changes):
    """`runs` with changes in those of the mask."""
    return runs.assign(**{key: runs[key].mask(mask, value) for key, value in changes.items()})
