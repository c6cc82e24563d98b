"""Sweeps, as real processes; most of them train in milliseconds (fake_train.py), so that what is
tested is the sweep.
"""

import os
import signal

import pytest
from hydra_config import begun_state
from processes import (
    FAKE,
    GRID,
    REAL,
    finish,
    kill,
    start,
    states,
    succeed,
    sweep,
    trained,
    wait_until,
)

from lcm.runs.grid import grid_of
from lcm.runs.state import write_state

pytestmark = pytest.mark.commands

# One sweep


def test_one_failure_stops_nothing_and_the_next_time_only_it_is_trained(tmp_path):
    """And where all is finished, the true train.py trains nothing."""
    code, output = sweep(FAKE, *GRID, cwd=tmp_path, FAKE_FAULT="/se/seed0")
    assert code == 1, output
    assert states(tmp_path) == {"finished": 5, "failed": 1}
    assert "6 runs: 5 finished, 1 failed" in output
    assert "the loss of a test is not finite" in output.split("6 runs: 5 finished")[1]
    before = trained(tmp_path)
    (failed,) = [run for run in before if "/se/seed0" in str(run)]
    assert f"log: {(failed / 'log.txt').relative_to(tmp_path)}" in output
    assert "the loss of a test is not finite" in (failed / "log.txt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # no multirun.yaml, no outputs

    output = succeed(FAKE, GRID[1], "-m", *GRID[2:], cwd=tmp_path)  # it may stand anywhere
    assert "6 runs: 5 finished, 1 failed" in output and "6 runs: 6 finished" in output
    after = trained(tmp_path)
    assert {run for run in after if after[run] != before[run]} == {failed}

    output = succeed(REAL, *GRID, cwd=tmp_path)
    assert "all finished: nothing to train" in output
    assert output.count("finished     3/3") == 6
    output = succeed(REAL, "attention=se", "schedule.epochs=3", "runs=runs", cwd=tmp_path)
    assert output.startswith("already finished: runs/digits/resnet20/se/seed0-"), output
    assert trained(tmp_path) == after
    succeed(FAKE, *GRID, "rerun=true", cwd=tmp_path)
    assert len(list(tmp_path.glob("runs/*/*/*/.seed*.1"))) == 6


def test_a_log_that_cannot_be_written_is_a_failure_of_its_run_alone(tmp_path):
    (tmp_path / grid_of(GRID[1:])[2].directory / "log.txt").mkdir(parents=True)
    code, output = sweep(FAKE, *GRID, cwd=tmp_path)
    assert code == 1 and "6 runs: 5 finished, 1 failed" in output
    assert output.count("IsADirectoryError: ") == 1


def test_a_run_that_is_not_where_it_should_be_is_not_trained_for_ever(tmp_path):
    code, output = sweep(FAKE, "-m", "attention=se", "runs='${now:%f}'", cwd=tmp_path)
    assert code == 1 and "trained, but not in this directory" in output


def test_a_signal_saves_the_run_and_ends_the_sweep(tmp_path):
    process = start(FAKE, *GRID, cwd=tmp_path, FAKE_SECONDS=1)
    wait_until(lambda: len(trained(tmp_path)) >= 2)
    os.kill(process.pid, signal.SIGINT)
    code, output = finish(process)
    assert code == 75, output
    assert "stopped by SIGINT" in output and "the same command continues it" in output
    assert states(tmp_path)["stopped"] == 1 and sum(states(tmp_path).values()) < 6
    succeed(FAKE, *GRID, cwd=tmp_path)
    assert all([epoch for epoch, _ in epochs] == [1, 2, 3] for epochs in trained(tmp_path).values())


def test_where_images_cannot_be_read_no_finished_run_is_set_aside(tmp_path):
    grid = ["attention=none,se", "data=cifar10", "data.root=no", "data.download=false", "runs=runs"]
    for run in grid_of(grid):
        (tmp_path / run.directory).mkdir(parents=True)
        write_state(tmp_path / run.directory, begun_state(run.config, state="finished"))
    code, output = sweep(REAL, "-m", *grid, "rerun=true", cwd=tmp_path)
    assert code == 2 and "cannot be used, nothing was started" in output
    assert not list(tmp_path.rglob(".seed*")) and states(tmp_path) == {"finished": 2}


# Several sweeps on one folder


def test_three_processes_share_a_grid_and_train_each_run_once(tmp_path):
    grid = ["-m", "attention=none,lcm2", "seed=range(4)", "schedule.epochs=2", "runs=runs"]
    processes = [start(FAKE, *grid, cwd=tmp_path, FAKE_SECONDS=0.6) for _ in range(3)]
    codes, outputs = zip(*[finish(process) for process in processes], strict=True)
    assert set(codes) <= {0, 3} and 0 in codes, outputs
    assert states(tmp_path) == {"finished": 8}
    found = trained(tmp_path).values()
    owners = [process for (_, process), _ in found]
    assert list(found) == [[(1, process), (2, process)] for process in owners]
    assert len(set(owners)) > 1


def test_a_run_of_a_live_owner_is_passed_over(tmp_path):
    first = ["attention=se", "seed=0", "schedule.epochs=3", "runs=runs"]
    other = start(FAKE, *first, cwd=tmp_path, FAKE_SECONDS=60)
    wait_until(lambda: trained(tmp_path))
    code, output = sweep(FAKE, *GRID, cwd=tmp_path)
    kill(other)
    assert code == 3, output
    assert states(tmp_path) == {"finished": 5, "running": 1}
    assert "being trained elsewhere: runs/digits/resnet20/se/seed0-" in output
    assert f"process {other.pid} on" in output


def test_a_run_whose_owner_dies_meanwhile_is_taken_over_at_the_end(tmp_path):
    first = ["attention=none", "seed=0", "schedule.epochs=3", "runs=runs"]
    other = start(FAKE, *first, cwd=tmp_path, FAKE_SECONDS=60)
    wait_until(lambda: trained(tmp_path))
    process = start(FAKE, *GRID, cwd=tmp_path, FAKE_SECONDS=0.2)
    wait_until(lambda: len(trained(tmp_path)) >= 4)
    kill(other)
    code, output = finish(process)
    assert code == 0, output
    assert states(tmp_path) == {"finished": 6}
    (taken,) = [epochs for run, epochs in trained(tmp_path).items() if "none/seed0" in str(run)]
    assert [process for _, process in taken] == [other.pid, process.pid, process.pid, process.pid]
