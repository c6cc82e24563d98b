"""A run's name, directory and run.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import config
from tiny import ROOT

import lcm.runs.state
from lcm.config.identity import config_hash
from lcm.errors import NotFinite, Stopped, UserError
from lcm.files import write_atomically
from lcm.runs.directory import run_directory, run_name
from lcm.runs.state import (
    commit,
    continued,
    environment,
    new_state,
    read_state,
    recorded,
    refuse_another_config,
    write_state,
)


def state_of(composed, **changes):
    facts = {
        "params": 1,
        "gfloat": 0.1,
        "macs": 1,
        "threads": 1,
        "versions": {},
        "device": "cpu",
        "data_fingerprint": "f00d",
    }
    return new_state(composed, **facts) | changes


def test_the_directory_follows_from_the_config():
    composed = config(seed=3)
    assert run_name(composed) == f"digits/resnet20/lcm2/seed3-{config_hash(composed)[:8]}"
    assert run_directory(composed) == Path("runs") / run_name(composed)
    assert run_directory(composed | {"runs": "/big/disk"}) == Path("/big/disk") / run_name(composed)
    assert run_directory(composed | {"run_directory": "here"}) == Path("here")


def test_run_json_says_what_others_read():
    state = state_of(config(schedule__epochs=2))
    for key in (
        "state", "message", "run", "data", "model", "attention", "seed", "schedule", "precision", "compile", "deviations",
        "config", "config_hash", "params", "gfloat", "macs", "epochs", "result", "versions", "commit", "dirty", "device", "host",
        "data_fingerprint", "start", "end", "seconds", "continued",
    ):  # fmt: skip
        assert key in state
    assert state["deviations"] == {"schedule.epochs": 2} and state["epochs"] == 2 and state["result"] is None
    json.dumps(state, allow_nan=False)


def test_the_commit_is_that_of_the_checkout():
    head, dirty = commit()
    if not (Path(lcm.runs.state.__file__).parents[2] / ".git").exists():
        assert (head, dirty) == (None, False)
    else:
        assert len(head) == 40 and isinstance(dirty, bool)


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit.__wrapped__() == (None, False)


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    write_atomically(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no space left"):
            write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["run.json"]

    def die(*args):
        raise SystemExit

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, die)
            with pytest.raises(SystemExit):
                write_atomically(file, b"new")
        assert file.read_bytes() == b"old"
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["run.json"]  # the dead left nothing that stays


def test_read_state(tmp_path):
    assert read_state(tmp_path) == {} == read_state(tmp_path / "nowhere")
    state = state_of(config())
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


WHOLE = {"state": "running", "config": {}, "config_hash": "c0ffee", "data_fingerprint": "f00d", "epochs": 3}
RESULT = {"test_top1": 97.0, "test_top5": 100.0, "best_test_top1": 97.5, "best_epoch": 2}
DAMAGES = {
    "empty": "", "zeros": "\0" * 100, "cut": '{"state": "running", "conf', "a list": "[]", "a number": "3", "no keys": "{}",
    "no UTF-8": b"\xff\xfe\x00", "no config": json.dumps(WHOLE | {"config": None}),
    "finished without a result": json.dumps(WHOLE | {"state": "finished"}),
    "finished with half of one": json.dumps(WHOLE | {"state": "finished", "result": RESULT | {"test_top1": None}}),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_json_is_named_with_the_way_out(tmp_path, damage):
    content = DAMAGES[damage]
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_state(tmp_path)
    assert f"{tmp_path}/run.json is damaged (" in str(caught.value) and "delete this one file" in str(caught.value)


def test_going_on_with_other_code_or_on_another_machine_is_recorded(monkeypatch):
    monkeypatch.setattr(lcm.runs.state, "commit", lambda: ("a" * 40, False))
    here = environment("cpu (A, 2 threads)")
    state = state_of(config(), **here)
    assert state["continued"] == [] and continued(state, here) == state
    gpu = continued(state, here | {"device": "NVIDIA H200"})
    assert [{key: value for key, value in part.items() if key != "start"} for part in gpu["continued"]] == [
        here | {"device": "NVIDIA H200"}
    ]
    assert continued(gpu, here | {"device": "NVIDIA H200"}) == gpu  # once
    back = continued(gpu, here)
    assert [part["device"] for part in back["continued"]] == ["NVIDIA H200", "cpu (A, 2 threads)"]
    assert (back["device"], back["commit"]) == ("cpu (A, 2 threads)", "a" * 40)  # those of its beginning


def test_a_file_where_a_directory_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file, or is below one"):
            read_state(place)


def test_another_config_is_refused_with_every_difference(tmp_path):
    state = state_of(config(seed=1, schedule__epochs=2, attention="se"))
    with pytest.raises(UserError) as caught:
        refuse_another_config(tmp_path, state, config())
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} holds a run of another config:"
    assert "  schedule.epochs: 2 there, 8 here" in lines and "  seed: 1 there, 0 here" in lines
    assert "  attention.name: se there, lcm2 here" in lines and "  attention.expand_bias: - there, False here" in lines
    assert lines[-1] == "take another directory, or the config that it has"
    assert len(lines) == 6


def test_the_same_config_elsewhere_is_the_same(tmp_path):
    refuse_another_config(tmp_path, state_of(config(device="cuda", runs="a")), config(device="cpu", runs="b"))
    refuse_another_config(tmp_path, {}, config())


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "finished", None),
        (Stopped("SIGTERM", "saved after step 3 of epoch 1"), "stopped", "SIGTERM: saved after step 3 of epoch 1"),
        (UserError("no space left"), "stopped", "no space left"),
        (NotFinite("the loss"), "failed", "the loss"),
        (RuntimeError("CUDA error"), "failed", "RuntimeError: CUDA error"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt: "),
    ],
)
def test_run_json_says_how_it_ended(tmp_path, error, state, message):
    begun = state_of(config(), message="an old one")
    try:
        with recorded(tmp_path, begun):
            during = read_state(tmp_path)
            begun["result"] = RESULT
            if error:
                raise error
    except BaseException as caught:
        assert caught is error
    assert (during["state"], during["message"]) == ("running", None)
    after = read_state(tmp_path)
    assert (after["state"], after["message"], after["result"]) == (state, message, RESULT)
    assert (after["end"] is not None) == (state == "finished")


def test_the_first_error_is_the_one_that_is_shown(tmp_path, monkeypatch):
    def full(*args):
        raise UserError("run.json: no space left")

    with pytest.raises(UserError, match=r"^checkpoint: no space left"), recorded(tmp_path, state_of(config())):
        monkeypatch.setattr(lcm.runs.state, "write_state", full)
        raise UserError("checkpoint: no space left")
    with pytest.raises(UserError, match=r"^run\.json: no space left"):
        monkeypatch.undo()
        with recorded(tmp_path, state_of(config())):
            monkeypatch.setattr(lcm.runs.state, "write_state", full)


def test_a_finished_run_is_shown_without_torch(tmp_path):
    """The real command on a real config: what it takes is Python, Hydra and a file."""
    composed = config()
    result = {
        "epoch": 8,
        "train_loss": 0.1,
        "train_top1": 99.0,
        "test_loss": 0.1,
        "test_top1": 97.18,
        "test_top5": 100.0,
    }
    state = state_of(composed, state="finished", result=result | {"best_test_top1": 97.46, "best_epoch": 7})
    directory = run_directory(composed | {"runs": str(tmp_path)})
    directory.mkdir(parents=True)
    write_state(directory, state)
    watch = "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules))"
    program = f"{watch}; sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, f"runs={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"already finished: {directory}"
    assert lines[1].startswith("test top-1 97.18 %, top-5 100.00 % after the last of 8 epochs (best epoch 7: 97.46 %)")
    assert lines[-1] == "False False"
