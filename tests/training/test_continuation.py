"""What may be lost or damaged in a run's directory: brought back and continued exactly, or named; nothing is thrown away."""

import json
import os
import shutil
import signal

import pytest
from tiny import after_step, die, directory_of, run

from lcm.training import checkpoint
from lcm.training.checkpoint import DAMAGED, NAME, PREVIOUS


@pytest.fixture(scope="module")
def killed(tiny, tmp_path_factory):
    """The directory of a run that was killed in step 3 of its last epoch; checkpoints after every second step."""
    folder = tmp_path_factory.mktemp("killed")
    config = tiny(f"runs={folder}", "checkpoint.every=2 steps")

    assert run(folder, config, after_step(15, die)).code == -signal.SIGKILL
    return directory_of(config)


@pytest.fixture
def config(tiny, killed, tmp_path):
    """The config whose run directory is a copy of the killed run's."""
    config = tiny(f"runs={tmp_path}")
    shutil.copytree(killed, directory_of(config))
    return config


def test_the_kill_itself(config, finishes_exactly, tmp_path):
    assert json.loads((directory_of(config) / "run.json").read_text())["state"] == "running"
    assert checkpoint.read(directory_of(config) / NAME)["index"] == 2
    ended = finishes_exactly(config)
    assert "continuing  from epoch 3, step 2" in ended.out and "warning" not in ended.out


def test_a_loader_worker_that_dies_is_named(tiny, finishes_exactly, tmp_path):
    """As the kernel kills one when memory runs out."""
    config = tiny(f"runs={tmp_path}", "data.workers=2")

    def kill_a_worker():
        import multiprocessing

        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    ended = run(tmp_path, config, after_step(7, kill_a_worker))
    assert ended.code == 2 and ended.err.startswith("error: a loader worker died, most often because memory"), ended.err
    finishes_exactly(config | {"data": config["data"] | {"workers": 0}})


def test_a_lost_run_json_is_written_anew(config, finishes_exactly, tmp_path):
    directory = directory_of(config)
    before = json.loads((directory / "run.json").read_text())
    (directory / "run.json").unlink()
    ended = finishes_exactly(config)
    assert f"{directory} has lost its run.json; written anew from the checkpoint" in ended.out
    after = json.loads((directory / "run.json").read_text())
    assert {key for key in before if after[key] != before[key]} <= {"state", "result", "end", "seconds", "continued"}


@pytest.mark.parametrize("content", [b"", b'{"state": "runn', b"{}"])
def test_a_damaged_run_json_stops_the_run_and_says_the_way_out(config, finishes_exactly, tmp_path, content):
    directory = directory_of(config)
    (directory / "run.json").write_bytes(content)
    kept = {file: (directory / file).read_bytes() for file in (NAME, PREVIOUS, "metrics.jsonl")}
    ended = run(tmp_path, config)
    assert ended.code == 2 and "is damaged" in ended.err and "delete this one file" in ended.err
    assert all((directory / file).read_bytes() == content for file, content in kept.items())
    if content:
        return  # the way out is the same for all
    (directory / "run.json").unlink()
    finishes_exactly(config)


METRICS = {
    "lost": lambda text: None,
    "empty": lambda text: "",
    "one line short": lambda text: text.splitlines(keepends=True)[0],
    "cut in the middle": lambda text: text[:-20],
    "a digit changed": lambda text: text.replace("0.1", "0.2", 1),
    "zeros at its end": lambda text: text[:-20] + "\0" * 20,
    "a line more, killed before the checkpoint": lambda text: text + '{"epoch": 3}\n',
    "a part of a line more": lambda text: text + '{"epoch": 3, "st',
}  # fmt: skip


@pytest.mark.parametrize("damage", METRICS)
def test_metrics_are_brought_back(config, finishes_exactly, tmp_path, damage):
    file = directory_of(config) / "metrics.jsonl"
    text = METRICS[damage](file.read_text())
    file.unlink()
    if text is not None:
        file.write_text(text)
    ended = finishes_exactly(config)
    assert ("warning" in ended.out) == ("more" not in damage)  # a kill leaves more, nothing but damage leaves less


def test_a_damaged_checkpoint_costs_two_steps_and_no_byte(config, finishes_exactly, tmp_path):
    directory = directory_of(config)
    content = bytearray((directory / NAME).read_bytes())
    content[len(content) // 2] ^= 4
    (directory / NAME).write_bytes(content)
    ended = finishes_exactly(config)
    assert f"warning: damaged checkpoint ({directory}/checkpoint.pt: its checksum does not match)" in ended.out
    assert "continuing  from epoch 3, step 0" in ended.out
    assert (directory / DAMAGED).read_bytes() == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rubbish", "no usable checkpoint:"),
        (None, "has 2 epochs, but there is no checkpoint to continue from"),  # they would be overwritten
    ],
)
def test_without_a_usable_checkpoint_nothing_is_touched(config, tmp_path, content, words):
    directory = directory_of(config)
    for name in (NAME, PREVIOUS):
        (directory / name).unlink() if content is None else (directory / name).write_bytes(content)

    def files():
        return {f.name: f.read_bytes() for f in directory.iterdir() if f.name not in ("owner.lock", "run.json")}

    before = files()
    ended = run(tmp_path, config)
    assert ended.code == 2 and words in ended.err and f"move {directory} away to start this run anew" in ended.err
    assert files() == before


def test_killed_before_its_first_checkpoint_it_begins_anew(config, finishes_exactly, tmp_path):
    directory = directory_of(config)
    for name in (NAME, PREVIOUS):
        (directory / name).unlink()
    first = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (directory / "metrics.jsonl").write_text(first)  # written, and the checkpoint after it was not
    finishes_exactly(config)


@pytest.mark.parametrize(
    "lost", [[], ["run.json", "metrics.jsonl"]], ids=["killed before its end was noted", "files lost"]
)
def test_a_run_whose_checkpoint_is_its_last_trains_no_more(tiny, reference, tmp_path, lost, finishes_exactly):
    config = tiny(f"runs={tmp_path}")
    directory = shutil.copytree(reference, directory_of(config))
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(state | {"state": "running", "result": None, "end": None}))
    for name in lost:
        (directory / name).unlink()
    ended = finishes_exactly(config)
    assert "epoch   3/3" not in ended.out


def test_other_images_are_refused(config, tmp_path):
    directory = directory_of(config)
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(state | {"data_fingerprint": "f00d"}))
    ended = run(tmp_path, config)
    assert ended.code == 2 and "was trained on other images of the same name" in ended.err


@pytest.mark.parametrize("lost", [False, True], ids=["with run.json", "without"])
def test_another_seed_in_the_same_directory_is_refused(tiny, killed, tmp_path, lost):
    directory = shutil.copytree(killed, tmp_path / "run")
    if lost:
        (directory / "run.json").unlink()
    ended = run(tmp_path, tiny(f"run_directory={directory}", "seed=1"))
    assert ended.code == 2
    assert ("checkpoint.pt: another run's" if lost else "  seed: 0 there, 1 here") in ended.err
    assert (directory / NAME).read_bytes() == (killed / NAME).read_bytes()


def test_a_checkpoint_of_another_version_is_named(config, tmp_path):
    directory = directory_of(config)
    saved = checkpoint.read(directory / NAME)
    saved["model"]["another.name"] = saved["model"].pop("conv.weight")
    checkpoint.save(directory, saved)
    ended = run(tmp_path, config)
    assert ended.code == 2 and "checkpoint.pt was written by another version of this program" in ended.err
    assert json.loads((directory / "run.json").read_text())["state"] == "stopped"
