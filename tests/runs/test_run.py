"""A run's name, directory and run.json."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from hydra_config import begun_state, config

import lcm.runs.run
import lcm.runs.state
from lcm.config.identity import config_hash
from lcm.errors import NotFinite, Stopped, UserError
from lcm.files import write_atomically
from lcm.runs.directory import run_directory, run_name
from lcm.runs.run import Run
from lcm.runs.state import commit, continued, environment, read_state
from lcm.training.signals import StopRequest


@pytest.fixture
def run(tmp_path):
    return Run(config(run_directory=str(tmp_path / "run")))


RESULT = {"test_top1": 97.0, "test_top5": 100.0, "best_test_top1": 97.5, "best_epoch": 2}


def test_the_directory_follows_from_the_config():
    composed = config(seed=3)
    assert run_name(composed) == f"digits/resnet20/lcm2/seed3-{config_hash(composed)[:8]}"
    assert run_directory(composed | {"runs": "/big/disk"}) == Path("/big/disk") / run_name(composed)
    assert run_directory(composed | {"run_directory": "here"}) == Path("here")


def test_the_commit_is_that_of_the_start(monkeypatch):
    before = commit()
    assert before == (None, False) or len(before[0]) == 40
    monkeypatch.setattr(lcm.runs.state.subprocess, "check_output", Mock(side_effect=KeyError))
    assert commit() == before


def test_a_checkout_with_a_file_that_no_commit_has_is_dirty(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    (tmp_path / "lcm/runs").mkdir(parents=True)
    (tmp_path / "lcm/code.py").write_text("code = 1\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git("init")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-m", "Begin")
    monkeypatch.setattr("lcm.runs.state.ROOT", tmp_path)
    for file, dirty in {
        "notes.txt": False,
        "lcm/__pycache__/code.pyc": False,  # ignored
        "lcm/attention/mine.py": True,
        "configs/attention/mine.yaml": True,
        "lcm/code.py": True,  # tracked, and changed
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("other = 1\n")
        assert commit.__wrapped__()[1] is dirty, file
        git("checkout", ".")
        git("clean", "-fd")
    monkeypatch.setenv("PATH", "")  # no git
    assert commit.__wrapped__() == (None, False)


@pytest.mark.parametrize(
    ("error", "call", "words", "files"),
    [
        (OSError(28, "No space left on device"), "fsync", "no space left", 1),
        (SystemExit("killed there"), "fsync", "killed there", 2),
        (SystemExit("killed there"), "replace", "killed there", 2),
    ],
)
def test_written_whole_or_not_at_all(error, call, words, files, tmp_path):
    file = tmp_path / "run.json"
    write_atomically(file, b"old")
    ends = pytest.raises((UserError, SystemExit), match=words)
    with patch.object(os, call, side_effect=error), ends:
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and len(os.listdir(tmp_path)) == files
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]  # the dead left nothing that stays


def test_every_continuation_is_counted_and_each_new_environment_recorded(monkeypatch):
    monkeypatch.setattr(lcm.runs.state, "commit", lambda: ("a" * 40, False))
    here = environment("cpu (A, 2 threads)")
    there = here | {"device": "NVIDIA H200"}
    state = begun_state(config(), **here)
    assert (state["interruptions"], state["continued"]) == (0, [])
    del state["interruptions"]  # as before they were counted
    for place in (here, there, there, here):
        state = continued(state, place)
    assert state["interruptions"] == 4
    assert [{key: part[key] for key in here} for part in state["continued"]] == [there, here]
    assert {key: state[key] for key in here} == here  # of its beginning


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "finished", None),
        (
            Stopped("SIGTERM", "saved after step 3 of epoch 1"),
            "stopped",
            "SIGTERM: saved after step 3 of epoch 1",
        ),
        (UserError("no space left"), "stopped", "no space left"),
        (NotFinite("the loss"), "failed", "the loss"),
        (RuntimeError("CUDA error"), "failed", "RuntimeError: CUDA error"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt: "),
    ],
)
def test_run_json_says_how_it_ended(run, capsys, error, state, message):
    ends = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with ends, run.owned():
        begin(run)
        during = read_state(run.directory)
        run.state["result"] = RESULT
        if error:
            raise error
    assert (during["state"], during["message"]) == ("running", None)
    after = read_state(run.directory)
    assert (after["state"], after["message"], after["result"]) == (state, message, RESULT)
    assert (after["end"] is not None) == (state == "finished") and run.state == after
    run.report()
    assert f"run directory: {run.directory}\n" in capsys.readouterr().out


def begin(run, threads=1, device="cpu"):
    data = Mock(fingerprint="f00d", num_classes=10, notes=[], unused=[], files=None)
    data.train.return_value = data.test.return_value = Mock(images=2)
    run.begin(data, Mock(params=1, gfloat=0.1, macs=1, uncounted=[]), threads, device)


def test_the_first_error_is_the_one_that_is_shown(run, monkeypatch):
    with pytest.raises(UserError, match=r"^checkpoint: no space left"), run.owned():
        begin(run)
        monkeypatch.setattr(lcm.runs.run, "write_state", Mock(side_effect=UserError("run.json")))
        raise UserError("checkpoint: no space left")


@pytest.mark.parametrize(
    ("asked", "saved", "threads"),
    [("auto", None, "auto"), ("auto", {"epoch": 1}, 3), (2, {"epoch": 1}, 2)],
)
def test_threads_are_those_of_the_command_or_of_the_checkpoint(asked, saved, threads, run):
    run.config["threads"] = asked
    run.state["threads"] = 3
    run.saved = saved
    assert run.threads == threads


def test_killed_before_its_first_checkpoint_it_begins_anew_in_the_environment_of_now(tmp_path):
    """Threads, device and commit are those that its numbers come from."""
    for threads, interruptions in ((1, 0), (3, 1)):
        run = Run(config(run_directory=str(tmp_path)))
        with pytest.raises(KeyboardInterrupt), run.owned():
            assert run.threads == "auto"
            begin(run, threads, f"cpu ({threads} threads)")
            raise KeyboardInterrupt
        state = read_state(run.directory)
        found = [state[key] for key in ("threads", "device", "interruptions", "continued")]
        assert found == [threads, f"cpu ({threads} threads)", interruptions, []]


# Signals: the first one counts, and only a second SIGINT ends at once


def test_the_first_signal_counts():
    """SIGUSR1 says that a job's time is up; the SIGTERM that follows must not make another reason
    of it.
    """
    stop = StopRequest()
    with stop.listening(), stop.patient():
        for name in ("SIGUSR1", "SIGTERM", "SIGINT"):
            signal.raise_signal(getattr(signal, name))
            assert stop.requested == "SIGUSR1"
        with pytest.raises(Stopped, match="a second SIGINT") as stopped:
            signal.raise_signal(signal.SIGINT)
    assert stopped.value.signal == "SIGINT"
    # `train.py | tee log`, and Ctrl-C ended both.
    assert stop.behind(BrokenPipeError()).signal == "SIGUSR1" and not stop.at_once


@pytest.mark.parametrize("caught", [False, True])
def test_at_any_other_time_it_ends_at_once(caught):
    """Or before the run trains, where other code has caught the exception; whatever that raises."""
    stop = StopRequest()
    with stop.listening(), pytest.raises(Stopped, match="SIGTERM: there was nothing to save"):
        with contextlib.suppress(Stopped if caught else ()):
            signal.raise_signal(signal.SIGTERM)
        with stop.patient():
            pytest.fail("the run began")
    assert isinstance(stop.behind(OSError()), Stopped)
