"""Simulated run directories for the tests of reporting: invented numbers in the exact form that train.py writes."""

import hashlib
import json
import random
from pathlib import Path

PARAMS = {
    "none": 269722,
    "lcm1": 277972,
    "lcm2": 277972,
    "se": 278500,
    "cbam": 279700,
    "nonlocal": 271000,
    "gc": 278484,
}


def simulated_run(
    folder,
    data="cifar10",
    model="resnet20",
    attention="none",
    seed=0,
    top1=92.0,
    *,
    schedule="cifar",
    precision="fp32",
    epochs=3,
    state="finished",
    deviations=None,
    fingerprint="f00d",
    config=None,
    **changes,
):
    """Write one run directory whose last epoch has the test accuracy `top1`; returns the directory.

    `config`: flat keys and the values that its config has, {"attention.reduction": 8}.
    """
    identity = f"{data}{model}{attention}{seed}{schedule}{precision}{epochs}{deviations}{config or ''}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    name = f"{data}/{model}/{attention}/seed{seed}-{digest[:8]}"
    noise = random.Random(identity)
    metrics = []
    for epoch in range(1, epochs + 1):
        left = (epochs - epoch) / epochs
        metrics.append(
            {
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
        )
    last = metrics[-1]
    best = max(metrics, key=lambda row: row["test_top1"])
    result = {key: last[key] for key in ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")}
    result |= {"best_test_top1": best["test_top1"], "best_epoch": best["epoch"]}
    run = {
        "state": state,
        "message": None,
        "run": name,
        "data": data,
        "model": model,
        "attention": attention,
        "schedule": schedule,
        "seed": seed,
        "precision": precision,
        "compile": False,
        "deviations": deviations or {},
        "epochs": epochs,
        "config": {
            "seed": seed,
            "precision": precision,
            "runs": str(folder),
            "run_directory": None,
            "data": {"name": data, "root": "/home/somebody/data", "num_classes": 10},
            "model": {"name": model},
            "attention": {"name": attention},
            "schedule": {"name": schedule, "epochs": epochs},
        },
        "config_hash": digest,
        "params": PARAMS.get(attention, 280000),
        "gfloat": 0.041306,
        "macs": 40813184,
        "versions": {"python": "3.11.2", "torch": "2.6.0", "lcm": "0.1.0"},
        "device": "cpu (simulated)",
        "data_fingerprint": fingerprint,
        "result": result if state == "finished" else None,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "host": "somewhere",
        "start": "2026-01-02T03:04:05+00:00",
        "end": "2026-01-02T03:05:05+00:00" if state == "finished" else None,
        "seconds": 60.25,
        **changes,
    }
    for key, value in (config or {}).items():
        *groups, last = key.split(".")
        place = run["config"]
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    directory = Path(folder) / name
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return directory
