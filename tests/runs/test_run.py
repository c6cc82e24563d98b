"""A run's name, directory and run.json; what it prints into a pipe that is closed."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra_config import begun_state, config
from processes import FAKE, start, states

import lcm.runs.run
import lcm.runs.state
from lcm.config.identity import config_hash
from lcm.errors import NotFinite, Stopped, UserError
from lcm.files import write_atomically
from lcm.runs.directory import run_directory, run_name
from lcm.runs.run import Run
from lcm.runs.state import commit, continued, environment, read_state

RESULT = {"test_top1": 97.0, "test_top5": 100.0, "best_test_top1": 97.5, "best_epoch": 2}


def test_the_directory_follows_from_the_config():
    composed = config(seed=3)
    assert run_name(composed) == f"digits/resnet20/lcm2/seed3-{config_hash(composed)[:8]}"
    assert run_directory(composed | {"runs": "/big/disk"}) == Path("/big/disk") / run_name(composed)
    assert run_directory(composed | {"run_directory": "here"}) == Path("here")


def test_the_commit_is_that_of_the_start(monkeypatch):
    commit.cache_clear()
    before = commit()
    assert before == (None, False) or len(before[0]) == 40
    monkeypatch.setattr(
        lcm.runs.state.subprocess, "run", lambda *args, **keys: pytest.fail("asked again")
    )
    assert commit() == before
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")  # no git
    assert commit.__wrapped__() == (None, False)


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        ("lcm/attention/mine.py", True),
        ("configs/attention/mine.yaml", True),
        ("hydra_plugins/mine/x.py", True),
        ("lcm/code.py", True),  # tracked, and changed
        ("notes.txt", False),
        ("lcm/__pycache__/code.pyc", False),  # ignored
    ],
)
def test_a_checkout_with_a_file_that_no_commit_has_is_dirty(tmp_path, monkeypatch, file, dirty):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    (tmp_path / "lcm/runs").mkdir(parents=True)
    (tmp_path / "lcm/code.py").write_text("code = 1\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git("init")
    git("add", ".")
    git("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-m", "Begin")
    monkeypatch.setattr("lcm.runs.state.__file__", str(tmp_path / "lcm/runs/state.py"))
    assert commit.__wrapped__()[1] is False
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("other = 1\n")
    assert commit.__wrapped__()[1] is dirty


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    write_atomically(file, b"old")

    def fails_with(error, call):
        def fail(*args):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises((UserError, SystemExit)) as caught:
                write_atomically(file, b"new")
        assert file.read_bytes() == b"old"
        return str(caught.value)

    assert "no space left" in fails_with(OSError(28, "No space left on device"), "fsync")
    assert os.listdir(tmp_path) == ["run.json"]
    for call in ("fsync", "replace"):
        fails_with(SystemExit(), call)  # killed there
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == [
        "run.json"
    ]  # the dead left nothing that stays


WHOLE = {
    "state": "running",
    "config": {},
    "config_hash": "c0ffee",
    "data_fingerprint": "f00d",
    "epochs": 3,
}
DAMAGES = {
    "empty": "", "zeros": "\0" * 100, "cut": '{"state": "running", "conf', "a list": "[]",
        "a number": "3", "no keys": "{}",
    "no UTF-8": b"\xff\xfe\x00", "no config": json.dumps(WHOLE | {"config": None}),
    "finished without a result": json.dumps(WHOLE | {"state": "finished"}),
    "finished with half of one": json.dumps(WHOLE | {"state": "finished",
        "result": RESULT | {"test_top1": None}}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_json_is_named_with_the_way_out(tmp_path, damage):
    content = DAMAGES[damage]
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_state(tmp_path)
    assert f"{tmp_path}/run.json is damaged (" in str(
        caught.value
    ) and "delete this one file" in str(caught.value)


def test_every_continuation_is_counted_and_each_new_environment_recorded(monkeypatch):
    monkeypatch.setattr(lcm.runs.state, "commit", lambda: ("a" * 40, False))
    here = environment("cpu (A, 2 threads)")
    there = here | {"device": "NVIDIA H200"}
    state = begun_state(config(), **here)
    assert (state["interruptions"], state["continued"]) == (0, [])
    del state["interruptions"]  # as before they were counted
    for number, (place, devices) in enumerate(
        [
            (here, []),
            (there, ["NVIDIA H200"]),
            (there, ["NVIDIA H200"]),
            (here, ["NVIDIA H200", here["device"]]),
        ],
        1,
    ):
        state = continued(state, place)
        assert state["interruptions"] == number
        assert [part["device"] for part in state["continued"]] == devices
    assert {key: state["continued"][0][key] for key in there} == there
    assert (state["device"], state["commit"]) == (
        here["device"],
        "a" * 40,
    )  # those of its beginning


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
def test_run_json_says_how_it_ended(tmp_path, capsys, error, state, message):
    run = Run(config(run_directory=str(tmp_path / "run")))
    try:
        with run.owned():
            begin(run)
            during = read_state(run.directory)
            run.state["result"] = RESULT
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    assert (during["state"], during["message"]) == ("running", None)
    after = read_state(run.directory)
    assert (after["state"], after["message"], after["result"]) == (state, message, RESULT)
    assert (after["end"] is not None) == (state == "finished") and run.state == after
    run.report()
    assert f"run directory: {run.directory}\n" in capsys.readouterr().out


def begin(run, threads=1, device="cpu"):
    few = SimpleNamespace(images=2)
    data = {
        "fingerprint": "f00d",
        "num_classes": 10,
        "train": lambda *_: few,
        "test": lambda *_: few,
    }
    counts = SimpleNamespace(params=1, gfloat=0.1, macs=1)
    run.begin(SimpleNamespace(**data), counts, threads, device)


def test_the_first_error_is_the_one_that_is_shown(tmp_path, monkeypatch):
    def full(*args):
        raise UserError("run.json: no space left")

    run = Run(config(run_directory=str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"^checkpoint: no space left"), run.owned():
        begin(run)
        monkeypatch.setattr(lcm.runs.run, "write_state", full)
        raise UserError("checkpoint: no space left")


@pytest.mark.parametrize(
    ("asked", "saved", "threads"),
    [("auto", None, "auto"), ("auto", {"epoch": 1}, 3), (2, {"epoch": 1}, 2)],
)
def test_threads_are_those_of_the_command_or_of_the_checkpoint(asked, saved, threads, tmp_path):
    run = Run(config(run_directory=str(tmp_path / "run"), threads=asked))
    run.state["threads"] = 3
    run.saved = saved
    assert run.threads == threads


def test_a_run_that_ends_before_it_begins_leaves_no_run_json(tmp_path):
    run = Run(config(run_directory=str(tmp_path / "run")))
    with pytest.raises(UserError, match="no such images"), run.owned():
        raise UserError("no such images")
    assert not (run.directory / "run.json").exists()


def test_killed_before_its_first_checkpoint_it_begins_anew_in_the_environment_of_now(tmp_path):
    """Threads, device and commit are those that its numbers come from."""
    chosen = config(run_directory=str(tmp_path / "run"))
    found = []
    for threads in (1, 3):
        run = Run(chosen)
        with pytest.raises(KeyboardInterrupt), run.owned():
            assert run.threads == "auto"
            begin(run, threads, f"cpu ({threads} threads)")
            raise KeyboardInterrupt
        state = read_state(run.directory)
        found.append([state[key] for key in ("threads", "device", "interruptions", "continued")])
    assert found == [[1, "cpu (1 threads)", 0, []], [3, "cpu (3 threads)", 1, []]]


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    """python train.py | head -1, or a closed terminal: the prints go nowhere, the run goes on."""
    process = start(FAKE, "schedule.epochs=3", "runs=runs", cwd=tmp_path)
    process.stdout.close()
    assert process.wait(120) == 0 and states(tmp_path) == {"finished": 1}
