"""A recorded run trained again: its command line, the comparison, and both together."""

import json
import signal

import pytest
from events import hparams
from hydra_config import composed
from processes import REAL, ROOT, TINY, states, succeed, sweep
from tiny import after_step, command

from lcm.config.identity import config_hash, identity
from lcm.errors import UserError
from lcm.reporting.records import read_record
from lcm.runs.repeat import arguments, differences, other_environment, quoted, tolerances

REPEAT = ROOT / "scripts" / "repeat.py"


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


def test_every_committed_run_can_be_repeated_and_keeps_its_hash():
    for file in sorted((ROOT / "results" / "metrics").glob("*.jsonl")):
        run, _ = read_record(file)
        assert f"seed={run['seed']}" in arguments(run) or run["seed"] == 0
        assert config_hash(run["config"]) == run["config_hash"], file.name


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
        "données",
        1e-5,
        None,
        True,
        [1, "a b"],
    ],
)
def test_words_are_read_back_by_hydra(value):
    assert composed(f"+key={quoted(value)}")["key"] == value


@pytest.mark.parametrize(
    ("changes", "further", "words"),
    [
        ({"attention": {"name": "mine"}}, [], "attention=mine: no such attention"),
        ({"dropout": 0.1}, [], r"other keys \(dropout\): git checkout abc first"),
        ({}, ["schedule.epochs=1"], "it would make this another run"),
        ({}, ["+seed=1"], "it would make this another run"),
        ({}, ["run_directory=here"], "it would make this another run"),
        ({}, ["runs=there"], "it would make this another run"),
    ],
)
def test_what_this_version_does_not_know_is_refused(changes, further, words):
    run = {"run": "r", "commit": "abc", "config": composed()}
    assert arguments(run, ["data.root=here"])[-1] == "data.root=here"
    with pytest.raises(UserError, match=words):
        arguments(run | {"config": run["config"] | changes}, further)


def test_one_bit_is_a_difference_and_time_is_none():
    before = {"train_loss": [2.0, 1.0, 0.5], "seconds": [1, 2, 3]}
    assert differences(before, before | {"seconds": [4, 5, 6]}, {}) == []
    assert differences(before, before | {"train_loss": [2.0, 1.0000000000000002, 0.25]}, {}) == [
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
    versions = {"python": "3", "torch": "2"}
    run = {"device": "cpu", "threads": 1, "commit": "a", "dirty": False, "versions": versions}
    now = run | {"commit": "b", "threads": 2, "versions": versions | {"torch": "3"}}
    lines = ["threads: 1 then, 2 now", "commit: a then, b now", "torch: 2 then, 3 now"]
    assert other_environment(run, now) == lines
    words = "continued in another environment (`continued` in its record)"
    parts = run | {"continued": [{}]}
    assert other_environment(parts, run) == [f"then: {words}"]
    assert other_environment(run, parts) == [f"now: {words}"]
    (line,) = other_environment(run | {"own_source": {"attention": 1}}, run)
    assert line.startswith("own_source: ")
    assert other_environment(run, run | {"own_source": {}}) == []  # an older record
    del run["versions"]
    assert other_environment(run, now)[-1] == "torch: None then, 3 now"


@pytest.mark.commands
def test_a_run_repeated_and_a_record_that_was_changed(tmp_path):
    """The first repetition is stopped, which saves it; the same command continues it."""
    words = ["device=cpu", "seed=1", "schedule.epochs=2", f"runs={tmp_path}/runs"]
    succeed(REAL, *TINY, *words, cwd=tmp_path)
    (run,) = tmp_path.glob("runs/*/*/*/*")
    assert hparams(run / "tensorboard")["model.layers"].number_value == 8
    shown = succeed(REPEAT, run, "--show", f"--runs={tmp_path}/again", cwd=tmp_path)
    assert "model.layers=8" in shown and not (tmp_path / "again").exists()

    again = [run, f"--runs={tmp_path}/again", "tensorboard=false"]
    stop = after_step(3, lambda: signal.raise_signal(signal.SIGINT))
    ended = command(tmp_path, *again, script=str(REPEAT), prepare=stop)
    assert ended.code == 75 and "stopped by SIGINT: saved after step 3 of epoch 1" in ended.err
    assert ended.err.count("stopped by") == 1 and "Traceback" not in ended.err
    assert states(tmp_path / "again") == {"stopped": 1}
    code, output = sweep(REPEAT, *again, cwd=tmp_path)
    assert code == 0 and "continuing" in output, output
    assert "the same numbers, bit for bit: 2 epochs of epoch, step, train_loss" in output

    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["test_loss"] += 1e-9
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, output = sweep(REPEAT, *again, cwd=tmp_path)  # trained once more
    assert code == 1 and "test_loss: differs from epoch 1 on, by 1e-09 at most" in output
