"""Where runs stand, read from their directories, and what a run prints at its end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hydra_config import config
from invented_runs import invented_run
from processes import FAKE, ROOT, sweep

from lcm.runs.status import Status, status_of, table, time_left, totals
from lcm.runs.summary import best_and_last, result_line

STOPPED = "SIGTERM: saved after step 5 of epoch 4"


def test_every_state_is_told_from_the_directory(tmp_path):
    stopped = invented_run(tmp_path, seed=1, state="stopped", message=STOPPED, epochs=10)
    killed = invented_run(tmp_path, seed=2, state="running", epochs=10)
    for directory in (stopped, killed):  # 4 of 10 epochs
        lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
        (directory / "metrics.jsonl").write_text("".join(lines[:4]))
    damaged = invented_run(tmp_path, seed=4)
    (damaged / "run.json").write_text('{"state": "fini')
    finished = invented_run(tmp_path, seed=0, top1=92.5)
    failed = invented_run(tmp_path, seed=3, state="failed", message="not finite")
    assert status_of(finished)[1:5] == ("finished", 3, 3, 92.5)
    for directory, words in {
        stopped: ("stopped", 4, 10, STOPPED),
        killed: ("stopped", 4, 10, "killed, or its machine went down"),
        failed: ("failed", 3, 3, "not finite"),
        tmp_path / "nowhere": ("to do", 0, None, None),
    }.items():
        found = status_of(directory)
        assert (found.state, found.epoch, found.epochs, found.message) == words
    assert status_of(damaged).state == "failed"
    assert "run.json is damaged" in status_of(damaged).message


def test_the_time_left_of_a_live_run_follows_from_its_pace(tmp_path, monkeypatch):
    directory = invented_run(tmp_path, state="running", epochs=10)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:4]))
    monkeypatch.setattr("lcm.runs.status.is_owned", lambda directory: True)
    left = pytest.approx(6 / 4 * json.loads(lines[3])["seconds"])
    assert status_of(directory)[5:7] == (left, None) and status_of(directory).state == "live"


def test_what_a_sweep_varies_is_shown_with_its_values(tmp_path):
    changes = [
        {"schedule__learning_rate": 0.05},
        {"schedule__learning_rate": 0.1, "seed": 1},
        {"schedule": "cifar"},
        {"attention": "se"},
        {"attention": "se", "seed": 1, "threads": 2},
    ]
    statuses = [
        Status(tmp_path / f"{index}", "to do", config=config(**change))
        for index, change in enumerate(changes)
    ]
    assert [line.split()[:-2] for line in table(statuses, tmp_path).splitlines()[1:]] == [
        ["0", "schedule=digits", "schedule.learning_rate=0.05"],
        ["1", "schedule=digits", "schedule.learning_rate=0.1"],
        ["2", "schedule=cifar"],
        ["3"],
        ["4"],
    ]


TODO = Status("", "to do")


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "about 0 s"),
        ([(TODO, {}), (Status("", "stopped", 4, pace=20.0), {})], "about 5 min 20 s"),
        ([(TODO, {}), (TODO, {"compile": True})], "about 3 min 20 s and 1 run of unknown length"),
        ([(TODO, {"precision": "bf16"})], "not known yet"),
        ([(TODO, {"model": {"name": "resnet32"}})], "not known yet"),
        ([(TODO, {"data": {"name": "cifar100"}})], "not known yet"),
    ],
)
def test_the_time_left_follows_from_the_pace_of_the_same_network_and_data(runs, words):
    names = {"data": {"name": "cifar10"}, "model": {"name": "resnet20"}, "precision": "fp32"}
    names |= {"schedule": {"epochs": 10}, "compile": False}
    finished = [Status("", "finished", 10, 10, pace=pace) for pace in (10.0, 20.0, 90.0)]
    everything = [(status, {}) for status in finished] + runs
    assert time_left([run._replace(config=names | other) for run, other in everything]) == words


def test_the_table_names_runs_below_their_folder(tmp_path):
    live = Status(tmp_path / "a/b/c/seed0-1", "live", 3, 10, 55.5, 90.0)
    failed = Status(tmp_path / "a/b/c/seed1-1", "failed", message="two\nlines")
    assert [" ".join(line.split()) for line in table([live, failed], tmp_path).splitlines()] == [
        "run state epochs test top-1",
        "a/b/c/seed0-1 live 3/10 55.50 % 1 min 30 s left",
        "a/b/c/seed1-1 failed two lines",
    ]
    assert totals([TODO]) == "1 run: 1 to do"


@pytest.mark.commands
def test_the_script_shows_a_folder_and_a_grid_and_a_reader_may_go_away(tmp_path):
    """Without torch, as a user starts it."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    words = ["-m", "schedule.epochs=3", "runs=here"]
    sweep(FAKE, *words, "attention=none,se", cwd=tmp_path, FAKE_FAULT="/se/")
    for file in tmp_path.rglob("metrics.jsonl"):  # half a second an epoch
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        half = [json.dumps(row | {"seconds": 0.5 * row["epoch"]}) + "\n" for row in rows]
        file.write_text("".join(half))

    def shown(*arguments, stdout=subprocess.PIPE):
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / "status.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    lines = shown("here").stdout.splitlines()
    assert lines[-1] == "2 runs: 1 finished, 1 failed"
    assert "the loss of a test is not finite" in "".join(lines)
    lines = shown(*words, "attention=none,se,gc").stdout.splitlines()
    assert "3 runs: 1 finished, 1 failed, 1 to do" in lines
    # one epoch of the failed run is kept
    assert lines[-1] == "training left: about 2 s"
    reading, writing = os.pipe()
    os.close(reading)
    help_of_train = subprocess.run(
        [sys.executable, ROOT / "train.py", "--help"], stdout=writing, stderr=subprocess.PIPE
    )
    for done in (shown("here", stdout=writing), help_of_train):
        assert (done.returncode, not done.stderr) == (128 + signal.SIGPIPE, True)
    os.close(writing)


# What a run prints


@pytest.mark.parametrize(
    ("data", "beside"),
    [
        ("digits", ""),
        ("cifar10", "\nthe (retracted) paper prints top-1 92.26 % for this row, under its own "
            "protocol; this run differs: schedule=digits, schedule.epochs=1"),
    ],
)  # fmt: skip
def test_the_papers_row_is_beside_a_result_where_it_has_one(data, beside):
    state = {
        "data": data,
        "model": "resnet20",
        "attention": "none",
        "schedule": "digits",
        "epochs": 1,
        "deviations": {},
        "result": {
            "test_top1": 92.5,
            "test_top5": 99.8,
            "best_test_top1": 92.75,
            "best_epoch": 280,
        },
    }
    assert result_line(state) == (
        "test top-1 92.50 %, top-5 99.80 % after the last of 1 epoch (best epoch 280: 92.75 %)"
        + beside
    )


def test_the_last_epoch_is_reported_and_the_first_of_the_best():
    losses = {"train_loss": 1.0, "train_top1": 9.0, "test_loss": 2.0, "test_top5": 9.0, "lr": 0.1}
    rows = [
        {"epoch": epoch, "test_top1": top1, **losses}
        for epoch, top1 in enumerate([50.0, 70.0, 70.0, 60.0], 1)
    ]
    del losses["lr"]
    best = {"best_epoch": 2, "best_test_top1": 70.0}
    assert best_and_last(rows) == losses | {"epoch": 4, "test_top1": 60.0} | best
