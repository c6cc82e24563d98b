"""What may be lost or damaged in a run's directory, a disk that fills up: restored and continued
exactly, or reported; nothing is thrown away.
"""

import errno
import json
import os
import shutil
import signal

import pytest
from tiny import after_step, die, directory_of, place_of, run, state_of

from lcm.training.checkpoint import DAMAGED, NAME, PREVIOUS, read, save


@pytest.fixture(scope="module")
def killed(tiny, tmp_path_factory):
    """The directory of a run that was killed in step 3 of its last epoch; checkpoints after every
    second step.
    """
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


@pytest.fixture
def directory(config):
    return directory_of(config)


@pytest.fixture
def refused(directory, ends):
    """A function: a run ends with exit code 2 and these words, and touches nothing in `directory`
    but run.json.
    """

    def refuse(config, *words):
        def contents():
            return {
                f.name: f.read_bytes()
                for f in directory.iterdir()
                if f.name not in ("owner.lock", "run.json")
            }

        before = contents()
        ends(config, 2, *words)
        assert contents() == before

    return refuse


def test_the_kill_itself(config, finishes_exactly):
    assert state_of(config)["state"] == "running" and place_of(config) == (3, 2)
    assert "warning" not in finishes_exactly(config, "continuing  from epoch 3, step 2").out


def test_a_lost_run_json_is_written_again(config, directory, finishes_exactly):
    before = state_of(config)
    (directory / "run.json").unlink()
    finishes_exactly(config, f"{directory} has lost its run.json; written anew from the checkpoint")
    after = state_of(config)
    changing = {"state", "result", "end", "seconds", "continued", "interruptions"}
    assert {key for key in before if after[key] != before[key]} <= changing


METRICS = {
    "lost": lambda text: None,
    "one line short": lambda text: text.splitlines(keepends=True)[0],
    "a digit changed": lambda text: text.replace("0.1", "0.2", 1),
    "zeros at its end": lambda text: text[:-20] + "\0" * 20,
    "a line more, killed before the checkpoint": lambda text: text + '{"epoch": 3}\n',
    "a part of a line more": lambda text: text + '{"epoch": 3, "st',
}


@pytest.mark.parametrize("damage", METRICS)
def test_metrics_are_restored(config, directory, finishes_exactly, damage):
    file = directory / "metrics.jsonl"
    text = METRICS[damage](file.read_text())
    file.unlink() if text is None else file.write_text(text)
    # a kill leaves more, only damage leaves less
    assert ("warning" in finishes_exactly(config).out) == ("more" not in damage)


def test_a_damaged_checkpoint_costs_two_steps_and_no_byte(config, directory, finishes_exactly):
    content = bytearray((directory / NAME).read_bytes())
    content[len(content) // 2] ^= 4
    (directory / NAME).write_bytes(content)
    ended = finishes_exactly(config, "continuing  from epoch 3, step 0")
    assert (
        f"warning: damaged checkpoint ({directory}/checkpoint.pt: its checksum does not match)"
        in ended.out
    )
    assert (directory / DAMAGED).read_bytes() == content


def test_without_a_usable_checkpoint_nothing_is_touched(config, directory, refused):
    (directory / NAME).write_bytes(b"")
    (directory / PREVIOUS).write_bytes(b"rubbish")
    advice = f"move {directory} away to start this run anew"
    refused(
        config,
        "no usable checkpoint:",
        f"{directory / NAME}: cut",
        f"{directory / PREVIOUS}: cut",
        advice,
    )
    # The epochs of the record would be overwritten.
    (directory / NAME).unlink(), (directory / PREVIOUS).unlink()
    before = (directory / "run.json").read_bytes()
    refused(config, "has 2 epochs, its checkpoint is lost: put the newest", advice)
    assert (directory / "run.json").read_bytes() == before  # it says what the checkpoint needs


def test_a_checkpoint_of_another_version_of_a_network_is_refused(config, directory, refused):
    saved = read(directory / NAME)
    saved["model"]["renamed.weight"] = saved["model"].popitem()[1]
    save(directory, saved)
    refused(config, "its checkpoint does not fit this network", "continue with the code that began")


def test_killed_before_its_first_checkpoint_it_starts_again(config, directory, finishes_exactly):
    for name in (NAME, PREVIOUS):
        (directory / name).unlink()
    first = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (directory / "metrics.jsonl").write_text(first)  # written, and the checkpoint after it was not
    finishes_exactly(config)


@pytest.mark.parametrize(
    "lost", [[], ["run.json", "metrics.jsonl"]], ids=["killed before its end", "files lost"]
)
def test_a_run_whose_checkpoint_is_its_last_trains_no_more(
    tiny, reference, tmp_path, lost, finishes_exactly
):
    config = tiny(f"runs={tmp_path}")
    directory = shutil.copytree(reference, directory_of(config))
    state = state_of(config) | {"state": "running", "result": None, "end": None}
    (directory / "run.json").write_text(json.dumps(state))
    for name in lost:
        (directory / name).unlink()
    assert "epoch   3/3" not in finishes_exactly(config).out


def test_other_images_are_refused(config, directory, refused):
    (directory / "run.json").write_text(json.dumps(state_of(config) | {"data_fingerprint": "f00d"}))
    refused(config, "was trained on other images of the same name")


FULL = "what was saved before is intact; make room and run the same command again\n"


def full_at(name, call):
    """A `prepare`: no space is left from the time when a file is written for the `call`-th time."""
    fsync, calls = os.fsync, []

    def refuse(descriptor):
        calls.extend([1] * (os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/.{name}.tmp")))
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    return lambda: setattr(os, "fsync", refuse)


@pytest.mark.parametrize(
    "name, call, place",
    [("metrics.jsonl", 3, (2, 0)), ("checkpoint.pt", 2, (2, 0)), ("run.json", 2, (4, 0))],
)
def test_full_while_it_trains(tiny, ends, finishes_exactly, tmp_path, name, call, place):
    config = tiny(f"runs={tmp_path}")
    ended = ends(config, 2, f"/{name}: {FULL}", prepare=full_at(name, call))
    assert ended.err.startswith("error: no space left while writing ")
    assert ended.err.count("\n") == 1 and state_of(config)["state"] in ("running", "stopped")
    ends(config, 2, FULL, prepare=full_at("run.json", 1))  # still full
    assert place_of(config) == place
    finishes_exactly(config, f"continuing  from epoch {place[0]}")
    assert not [name for name in os.listdir(directory_of(config)) if name.endswith(".tmp")]
