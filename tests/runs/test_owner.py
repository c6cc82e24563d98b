"""One owner: the other process says who it is; a dead one holds nothing; asking changes nothing."""

import errno
import fcntl
import itertools
import os
import signal
import socket
import time
from unittest.mock import Mock

import pytest
from processes import kill, wait_until
from tiny import (
    PHOTOGRAPHS,
    Process,
    after_step,
    compare_runs,
    die,
    directory_of,
    run,
    state_of,
    train_as_main,
)

from lcm.errors import OwnedElsewhere, UserError
from lcm.runs.lock import is_owned, owner, owner_of


@pytest.fixture
def held(tmp_path):
    """A directory that another process owns, and that process."""
    directory = tmp_path / "run"

    def hold():
        with owner(directory):
            time.sleep(60)

    process = Process(tmp_path, hold)
    wait_until(lambda: owner_of(directory))
    yield directory, process
    kill(process)


def test_the_second_one_is_told_who_and_a_dead_owners_lock_is_free_at_once(held):
    directory, process = held
    assert is_owned(directory) and is_owned(directory)  # asking changes nothing
    who = rf"process {process.pid} on {socket.gethostname()} since 20"
    words = rf"{directory} is being trained by {who}.*: wait for it, or stop it there first"
    with pytest.raises(OwnedElsewhere, match=words), owner(directory):
        pass
    kill(process)
    assert owner_of(directory).startswith(who)
    assert not is_owned(directory)
    with owner(directory):
        assert f"process {os.getpid()} on " in owner_of(directory)


def test_the_lock_is_free_again_behind_its_block(tmp_path):
    assert not is_owned(tmp_path / "run")
    with owner(tmp_path / "run"):
        pass

    # by another process: asking here would close the file, which frees any lock of this one
    assert Process(tmp_path, owner(tmp_path / "run").__enter__).wait().code == 0
    assert not is_owned(tmp_path / "run")


def test_a_killed_owner_is_replaced_while_its_loader_workers_linger(tiny, tmp_path):
    reference, config = (
        tiny(f"runs={tmp_path}/{workers}", f"data.workers={workers}", *PHOTOGRAPHS)
        for workers in (0, 2)
    )
    assert run(tmp_path, reference).code == 0

    process = Process(tmp_path, train_as_main, config, after_step(8, die))
    assert process.wait().code == -signal.SIGKILL
    os.killpg(process.pid, 0)  # raises where nobody of its group is left: the workers are
    ended = run(tmp_path, config)
    assert ended.code == 0 and "continuing  from epoch 2" in ended.out, ended.err
    assert compare_runs(directory_of(reference), directory_of(config)) == []


def test_a_directory_that_another_config_took_in_the_meantime_is_refused(tiny, tmp_path):
    """Both looked when there was no run.json yet; then one trained, and the other got the lock."""
    mine, theirs = (
        tiny(f"run_directory={tmp_path}/run", "schedule.epochs=1", f"seed={seed}")
        for seed in (0, 1)
    )
    assert run(tmp_path, theirs).code == 0

    def looked_too_early():
        from lcm.runs import state

        answers = itertools.chain([lambda directory: {}], itertools.repeat(state.read_state))
        state.read_state = lambda directory: next(answers)(directory)

    ended = run(tmp_path, mine, looked_too_early)
    assert ended.code == 2 and "seed: 1 there, 0 here" in ended.err
    assert state_of(mine)["seed"] == 1


def renamed(run):
    """As by a rerun of another process, between opening the file and locking it."""
    return lambda *_: run.exists() and run.rename(run.with_name(".run.1"))


@pytest.mark.parametrize(
    ("locking", "error", "message"),
    [
        (
            lambda _: Mock(side_effect=OSError(errno.ENOLCK, "No locks available")),
            UserError,
            r"cannot be locked .No locks available.*set runs= to a folder",
        ),
        (renamed, OwnedElsewhere, "run is being trained by another process"),
    ],
)
def test_nobody_owns_without_locks_or_by_that_of_a_renamed_directory(
    locking, error, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "lockf", locking(tmp_path / "run"))
    with pytest.raises(error, match=message), owner(tmp_path / "run"):
        pass
