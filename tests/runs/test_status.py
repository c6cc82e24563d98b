"""Where runs stand, read from their directories."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from invented_runs import invented_run
from processes import FAKE, ROOT, kill, start, sweep, trained, wait_until

from lcm.runs.lock import owner
from lcm.runs.standing import Standing, count, standing_of, table, time_left

STATUS = ROOT / "scripts" / "status.py"


def test_every_state_is_told_from_the_directory(tmp_path):
    finished = invented_run(tmp_path, seed=0, top1=92.5)
    stopped = invented_run(
        tmp_path, seed=1, state="stopped", message="SIGTERM: saved after step 5 of epoch 4", epochs=10
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
    assert standing_of(finished) == Standing(finished, "finished", 3, 3, 92.5)
    assert standing_of(stopped)[1:4] == ("stopped", 4, 10)
    assert standing_of(stopped).message == "SIGTERM: saved after step 5 of epoch 4"
    assert standing_of(killed)[1:4] == ("stopped", 4, 10)
    assert standing_of(failed).state == "failed" and standing_of(failed).message == "the loss is not finite"
    assert standing_of(damaged).state == "failed" and "run.json is damaged" in standing_of(damaged).message
    assert standing_of(refused).state == "failed" and standing_of(refused).message == "no data\nget it"
    assert standing_of(tmp_path / "nowhere").state == "to do"


def test_a_live_run_shows_its_epoch_and_the_time_left(tmp_path):
    process = start(FAKE, "schedule.epochs=50", "runs=runs", cwd=tmp_path, FAKE_SECONDS=0.5)
    try:
        wait_until(lambda: any(len(epochs) > 4 for epochs in trained(tmp_path).values()))
        (directory,) = trained(tmp_path)
        standing = standing_of(directory)
        assert standing.state == "live" and 3 <= standing.epoch < 50 and standing.epochs == 50
        assert 10 < standing.left <= 0.5 * 50  # the fake run claims half a second an epoch
    finally:
        kill(process)
    assert standing_of(directory).state == "stopped"


def test_the_time_left_of_a_run_that_was_continued_counts_from_its_continuation(tmp_path):
    directory = invented_run(tmp_path, state="running", epochs=10)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:5]))
    row = json.loads(lines[4])
    with owner(directory):
        os.utime(directory / "metrics.jsonl", (0, 0))  # its last epoch was long ago
        assert standing_of(directory).left == pytest.approx(row["seconds"], abs=2)
        os.utime(directory / "run.json", (0, 0))
        assert standing_of(directory).left == 0


def test_the_time_left_follows_from_finished_runs_of_the_same_network_and_data(tmp_path):
    for seed, seconds in enumerate((30, 60, 90)):
        invented_run(tmp_path, attention="none", seed=seed, epochs=3, seconds=seconds)
    invented_run(tmp_path, attention="se", epochs=3, seconds=300)
    invented_run(tmp_path, attention="se", epochs=3, seconds=3, precision="bf16")
    broken = invented_run(tmp_path, attention="gc")
    (broken / "run.json").write_text("{}")

    def config(**changes):
        names = {"data": {"name": "cifar10"}, "model": {"name": "resnet20"}, "attention": {"name": "none"}}
        return (
            names | {"runs": str(tmp_path), "precision": "fp32", "compile": False, "schedule": {"epochs": 10}} | changes
        )

    def left(number, **changes):
        return time_left([config(**changes) | {"schedule": {"epochs": number}}], [Standing(tmp_path, "to do")])

    assert left(2) == "about 40 s"
    assert left(2, attention={"name": "se"}) == "about 3 min 20 s"
    assert left(2, attention={"name": "lcm2"}) == "about 50 s"  # the median of all: 10, 20, 30, 100
    assert left(2, precision="bf16") == "about 2 s"
    assert left(2, model={"name": "resnet32"}) == left(2, compile=True) == "not known yet"
    todo = Standing(tmp_path, "to do")
    assert time_left([config(), config()], [todo, todo._replace(state="stopped", epoch=4)]) == "about 5 min 20 s"
    assert time_left([config(), config()], [todo, todo._replace(state="finished")]) == "about 3 min 20 s"
    assert time_left([config(), config(compile=True)], [todo, todo]) == "about 3 min 20 s and 1 run of unknown length"


def test_the_table_names_runs_below_their_folder(tmp_path):
    lines = table(
        [
            Standing(tmp_path / "a/b/c/seed0-1", "live", 3, 10, 55.5, 90.0),
            Standing(tmp_path / "a/b/c/seed1-1", "failed", message="two\nlines"),
        ],
        tmp_path,
    ).splitlines()
    assert lines[0].split() == ["run", "state", "epochs", "test", "top-1"]
    assert lines[1].split() == ["a/b/c/seed0-1", "live", "3/10", "55.50", "%", "1", "min", "30", "s", "left"]
    assert lines[2].split() == ["a/b/c/seed1-1", "failed", "two", "lines"]
    assert count([Standing(tmp_path, "to do")]) == "1 run: 1 to do"


def test_the_script_shows_a_folder_and_a_grid(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    sweep(FAKE, "-m", "attention=none,se", "schedule.epochs=3", "runs=here", cwd=tmp_path, FAKE_FAULT="/se/")
    code, output = sweep(STATUS, "here", cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0 and output.splitlines()[-1] == "2 runs: 1 finished, 1 failed"
    assert "the loss of a test is not finite" in output
    arguments = ["-m", "attention=none,se,gc", "schedule.epochs=3", "runs=here"]
    code, output = sweep(STATUS, *arguments, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0 and "3 runs: 1 finished, 1 failed, 1 to do" in output
    assert (
        output.splitlines()[-1] == "training left: about 2 s"
    )  # half a second an epoch; one of the failed run is kept


@pytest.mark.parametrize("argument, message", [("nowhere", "no folder nowhere"), ("atention=se", "nearest: attention")])
def test_the_script_refuses_what_it_cannot_show(tmp_path, argument, message):
    code, output = sweep(STATUS, argument, cwd=tmp_path)
    assert code == 2 and message in output and "Traceback" not in output


def test_a_reader_that_is_gone_ends_the_script_silently(tmp_path):
    invented_run(tmp_path / "runs", top1=90.0)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, STATUS, tmp_path / "runs"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_thousand_runs_are_shown_in_a_moment(tmp_path):
    finished = invented_run(tmp_path / "first", epochs=300)
    metrics, run = (finished / "metrics.jsonl").read_bytes(), (finished / "run.json").read_text()
    for seed in range(1000):
        directory = tmp_path / f"runs/seed{seed}"
        directory.mkdir(parents=True)
        (directory / "metrics.jsonl").write_bytes(metrics)
        (directory / "run.json").write_text(run.replace('"finished"', '"running"') if seed % 2 else run)
        (directory / "owner.lock").touch()
    began = time.process_time()
    assert len(table([standing_of(d) for d in (tmp_path / "runs").iterdir()]).splitlines()) == 1001
    assert time.process_time() - began < 5
