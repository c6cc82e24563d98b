"""Where runs stand, read from their directories."""

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

STATUS = ROOT / "scripts" / "status.py"


@pytest.fixture
def live(monkeypatch):
    """Every run is being trained."""
    monkeypatch.setattr("lcm.runs.status.is_owned", lambda directory: True)


def test_every_state_is_told_from_the_directory(tmp_path):
    finished = invented_run(tmp_path, seed=0, top1=92.5)
    stopped = invented_run(
        tmp_path,
        seed=1,
        state="stopped",
        message="SIGTERM: saved after step 5 of epoch 4",
        epochs=10,
    )
    killed = invented_run(tmp_path, seed=2, state="running", epochs=10)
    failed = invented_run(tmp_path, seed=3, state="failed", message="the loss is not finite")
    damaged = invented_run(tmp_path, seed=4)
    (damaged / "run.json").write_text('{"state": "fini')
    refused = tmp_path / "cifar10/resnet20/none/seed5-00000000"
    refused.mkdir()
    (refused / "log.txt").write_text(
        "\n== then\n\nerror: an old error\n\n== now\nsome words\n\nerror: no data\nget it\n"
    )
    for directory in (stopped, killed):  # 4 of 10 epochs, and a line that was cut short
        lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
        (directory / "metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:30])
    assert status_of(finished)[1:5] == ("finished", 3, 3, 92.5)
    assert status_of(stopped)[1:4] == ("stopped", 4, 10)
    assert status_of(stopped).message == "SIGTERM: saved after step 5 of epoch 4"
    assert status_of(killed)[1:4] == ("stopped", 4, 10)
    assert (
        status_of(failed).state == "failed"
        and status_of(failed).message == "the loss is not finite"
    )
    assert (
        status_of(damaged).state == "failed" and "run.json is damaged" in status_of(damaged).message
    )
    assert status_of(refused).state == "failed" and status_of(refused).message == "no data\nget it"
    assert status_of(tmp_path / "nowhere").state == "to do"


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[1, 2]",
        '"words"',
        "{}",
        '{"epoch": 4}',
        '{"epoch": 4, "seconds": null, "test_top1": 50.0}',
        '{"epoch": 4, "seconds": 1.0, "test_top1": [50.0]}',
        "\x00\x00",
    ],
)
def test_an_odd_line_of_a_record_is_passed_over(tmp_path, line, live):
    directory = invented_run(tmp_path, state="stopped", epochs=10)
    lines = (directory / "metrics.jsonl").read_text().splitlines()[:3]
    (directory / "metrics.jsonl").write_text("\n".join([*lines, line]) + "\n")
    status = status_of(directory)
    assert status.epoch == 3 and status.top1 == json.loads(lines[2])["test_top1"]
    assert "3/10" in table([status], tmp_path)
    (directory / "metrics.jsonl").write_text(line + "\n")
    assert "0/10" in table([status_of(directory)], tmp_path)


def test_an_odd_run_json_is_a_line_too(tmp_path):
    odd = [
        invented_run(tmp_path, seed=0, state="failed", message=["no", "words"]),
        invented_run(tmp_path, seed=1, state="stopped", other=float("nan")),
        invented_run(tmp_path, seed=2, config={"data": ["cifar10"], "model": None, "seed": {}}),
    ]
    assert len(table([status_of(directory) for directory in odd]).splitlines()) == 4


def test_what_a_sweep_varies_is_shown_with_its_values(tmp_path):
    statuses = [
        Status(tmp_path / f"{index}", "to do", config=config(**changes))
        for index, changes in enumerate(
            [
                {"schedule__learning_rate": 0.05},
                {"schedule__learning_rate": 0.1, "seed": 1},
                {"schedule": "cifar"},
                {"attention": "se"},
                {"attention": "se", "seed": 1, "threads": 2},
            ]
        )
    ]
    lines = [line.split()[:-2] for line in table(statuses, tmp_path).splitlines()[1:]]
    assert lines[0] == ["0", "schedule=digits", "schedule.learning_rate=0.05"]
    assert lines[1] == ["1", "schedule=digits", "schedule.learning_rate=0.1"]
    assert lines[2] == ["2", "schedule=cifar"]
    assert lines[3:] == [["3"], ["4"]]


def test_the_time_left_of_a_run_that_was_continued_counts_from_its_continuation(tmp_path, live):
    directory = invented_run(tmp_path, state="running", epochs=10)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:5]))
    row = json.loads(lines[4])
    os.utime(directory / "metrics.jsonl", (0, 0))  # its last epoch was long ago
    assert status_of(directory).left == pytest.approx(row["seconds"], abs=2)
    os.utime(directory / "run.json", (0, 0))
    assert status_of(directory).left == 0


def test_the_time_left_follows_from_the_pace_of_the_same_network_and_data(tmp_path):
    def config(**changes):
        names = {
            "data": {"name": "cifar10"},
            "model": {"name": "resnet20"},
            "schedule": {"epochs": 10},
        }
        return names | {"precision": "fp32", "compile": False} | changes

    todo = Status(tmp_path, "to do")
    finished = [Status(tmp_path, "finished", 10, 10, pace=pace) for pace in (10.0, 20.0, 90.0)]

    def left(*runs):
        return time_left(
            [config()] * 3 + [config(**changes) for _, changes in runs],
            [*finished, *(s for s, _ in runs)],
        )

    assert (
        left((todo, {}), (todo._replace(state="stopped", epoch=4, pace=20.0), {}))
        == "about 5 min 20 s"
    )
    assert (
        left((todo, {}), (todo, {"compile": True}))
        == "about 3 min 20 s and 1 run of unknown length"
    )
    for changes in (
        {"precision": "bf16"},
        {"model": {"name": "resnet32"}},
        {"data": {"name": "cifar100"}},
    ):
        assert left((todo, changes)) == "not known yet"
    assert left() == "about 0 s"


def test_the_table_names_runs_below_their_folder(tmp_path):
    lines = table(
        [
            Status(tmp_path / "a/b/c/seed0-1", "live", 3, 10, 55.5, 90.0),
            Status(tmp_path / "a/b/c/seed1-1", "failed", message="two\nlines"),
        ],
        tmp_path,
    ).splitlines()
    assert lines[0].split() == ["run", "state", "epochs", "test", "top-1"]
    assert lines[1].split() == [
        "a/b/c/seed0-1",
        "live",
        "3/10",
        "55.50",
        "%",
        "1",
        "min",
        "30",
        "s",
        "left",
    ]
    assert lines[2].split() == ["a/b/c/seed1-1", "failed", "two", "lines"]
    assert totals([Status(tmp_path, "to do")]) == "1 run: 1 to do"


def test_the_script_shows_a_folder_and_a_grid(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    sweep(
        FAKE,
        "-m",
        "attention=none,se",
        "schedule.epochs=3",
        "runs=here",
        cwd=tmp_path,
        FAKE_FAULT="/se/",
    )
    code, output = sweep(STATUS, "here", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0 and output.splitlines()[-1] == "2 runs: 1 finished, 1 failed"
    assert "the loss of a test is not finite" in output
    arguments = ["attention=none,se,gc", "schedule.epochs=3", "-m", "runs=here"]
    code, output = sweep(STATUS, *arguments, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0 and "3 runs: 1 finished, 1 failed, 1 to do" in output
    assert (
        output.splitlines()[-1] == "training left: about 2 s"
    )  # half a second an epoch; one of the failed run is kept


def test_a_reader_that_is_gone_ends_the_script_silently(tmp_path):
    invented_run(tmp_path / "runs", top1=90.0)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, STATUS, tmp_path / "runs"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
