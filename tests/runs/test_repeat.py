"""A recorded run trained again: its command line, the comparison, and both together."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra_config import composed
from processes import finish, start, states, wait_until

from lcm.config.identity import identity
from lcm.errors import UserError
from lcm.reporting.records import read_record
from lcm.runs.repeat import arguments, differences, other_environment, quoted, tolerances

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["data=cifar10", "schedule=short", "seed=3", "compile=true", "attention=none"],
        [
            "schedule.divide_at=[0.25,0.5]",
            "schedule.learning_rate=1e-05",
            "schedule.nesterov=false",
        ],
        ["attention=se", "attention.sites={stages:[2,3]}", "attention.reduction=8"],
        ["attention.sites={last_of_stage:2}", "model.layers=32", "precision=bf16"],
        ["model=densenet40", "attention=gc", "model.memory=linear", "data=cifar100", "data.pad=2"],
        ["data=mini_imagenet", "model=resnet50", "attention=cbam", "deterministic=true"],
    ],
)
def test_the_command_line_composes_the_same_config(line):
    config = composed(*line)
    words = arguments({"run": "r", "config": config, "device": "cpu (X, 2 threads)", "threads": 2})
    again = composed(*words)
    assert identity(again) == identity(config)
    assert again["threads"] == 2 and again["device"] == "cpu"
    assert len(words) <= 4 + len(line) + 2  # nothing that stands for itself


def test_every_committed_run_can_be_repeated():
    for file in sorted((ROOT / "results" / "metrics").glob("*.jsonl")):
        run, _ = read_record(file)
        assert f"seed={run['seed']}" in arguments(run) or run["seed"] == 0


@pytest.mark.parametrize(
    "value",
    [
        "10 minutes",
        "it's",
        "a\\b",
        "",
        "1",
        "true-ish",
        "Nan",
        "/a/b-c",
        1e-5,
        None,
        True,
        [1, "a b"],
    ],
)
def test_words_are_read_back_by_hydra(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={quoted(value)}").value()
    strip = lambda v: [strip(i) for i in v] if isinstance(v, list) else getattr(v, "text", v)  # noqa: E731
    assert strip(parsed) == value


def test_what_this_version_does_not_know_is_refused():
    config = composed()
    with pytest.raises(UserError, match="this checkout has no attention=mine"):
        arguments({"run": "r", "config": config | {"attention": {"name": "mine"}}})
    with pytest.raises(UserError, match=r"other keys \(dropout\): git checkout abc first"):
        arguments({"run": "r", "commit": "abc", "config": config | {"dropout": 0.1}})
    for text in ("schedule.epochs=1", "+seed=1", "run_directory=here", "runs=there"):
        with pytest.raises(UserError, match="it would make this another run"):
            arguments({"run": "r", "config": config}, [text])
    assert arguments({"run": "r", "config": config}, ["data.root=here"])[-1] == "data.root=here"


def epochs(*losses, seconds=0.5):
    return {
        "epoch": list(range(1, len(losses) + 1)),
        "train_loss": list(losses),
        "seconds": [i + seconds for i in range(len(losses))],
    }


def test_one_bit_is_a_difference_and_time_is_none():
    before = epochs(2.0, 1.0, 0.5)
    assert differences(before, epochs(2.0, 1.0, 0.5, seconds=0.7), {}) == []
    assert differences(before, epochs(2.0, 1.0000000000000002, 0.25), {}) == [
        "train_loss: differs from epoch 2 on, by 0.25 at most; at the end 0.5 then, 0.25 now"
    ]


@pytest.mark.parametrize(
    ("config", "train_loss", "test_loss", "apart"),
    [
        ({"fold_batch_norm": True}, 1.0, 1.000001, []),
        ({"fold_batch_norm": True}, 1.0, 1.0001, ["test_loss"]),
        ({"fold_batch_norm": True}, 1.000001, 1.0, ["train_loss"]),
        ({}, 1.0, 1.000001, ["test_loss"]),
    ],
)
def test_only_the_test_loss_of_a_version_that_folded_batch_norms_has_a_tolerance(
    config, train_loss, test_loss, apart
):
    now = {"train_loss": [train_loss], "test_loss": [test_loss]}
    found = differences({key: [1.0] for key in now}, now, tolerances({"config": config}))
    assert [line.partition(":")[0] for line in found] == apart


def test_the_differences_of_two_environments_are_named():
    run = {
        "device": "cpu (X)",
        "threads": 1,
        "commit": "a",
        "dirty": False,
        "versions": {"python": "3", "torch": "2"},
    }
    assert other_environment(run, run) == []
    now = run | {"commit": "b", "threads": 2, "dirty": True}
    assert other_environment(run, now) == [
        "threads: 1 then, 2 now",
        "commit: a then, b with changes now",
    ]
    assert "continued" in other_environment(run | {"continued": [{}]}, run)[0]


def test_a_run_repeated_and_a_record_that_was_changed(tmp_path):
    overrides = [
        "model.layers=8",
        "schedule.epochs=2",
        "threads=1",
        "device=cpu",
        "tensorboard=false",
        "seed=1",
    ]

    def command(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    assert command("train.py", *overrides, f"runs={tmp_path}/runs").returncode == 0
    (run,) = tmp_path.glob("runs/*/*/*/*")
    shown = command("scripts/repeat.py", str(run), "--show", f"--runs={tmp_path}/again")
    assert (
        shown.returncode == 0
        and "model.layers=8" in shown.stdout
        and not (tmp_path / "again").exists()
    )
    done = command(
        "scripts/repeat.py",
        str(run),
        f"--runs={tmp_path}/again",
        "tensorboard=false",
        "progress=lines",
    )
    assert done.returncode == 0, done.stderr
    assert "the same numbers, bit for bit: 2 epochs of epoch, step, train_loss" in done.stdout

    changed = tmp_path / "changed"
    shutil.copytree(run, changed)
    first, last = (changed / "metrics.jsonl").read_text().splitlines()
    row = json.loads(first)
    (changed / "metrics.jsonl").write_text(
        f"{json.dumps(row | {'test_loss': row['test_loss'] + 1e-9})}\n{last}\n"
    )
    other = command(
        "scripts/repeat.py", str(changed), f"--runs={tmp_path}/again"
    )  # trained already: compared alone
    assert other.returncode == 1
    assert "test_loss: differs from epoch 1 on, by 1e-09 at most" in other.stdout


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_goes_on_to_the_training_which_saves(tmp_path, number, to_all):
    """Ctrl-C in a terminal reaches every process of its group; `kill` one process."""
    (record,) = (ROOT / "results/metrics").glob("digits-resnet20-none-seed0-*.jsonl")
    command = [record, f"--runs={tmp_path}", "tensorboard=false", "checkpoint.every='1 steps'"]
    process = start(ROOT / "scripts/repeat.py", *map(str, command), cwd=ROOT)
    wait_until(lambda: list(tmp_path.glob("*/*/*/*/checkpoint.pt")))
    (os.killpg if to_all else os.kill)(process.pid, number)
    code, output = finish(process)
    assert code == 75 and f"stopped by {number.name}: saved after step" in output
    assert output.count("stopped by") == 1 and "Traceback" not in output
    assert states(tmp_path) == {"stopped": 1}
