"""What may be lost or damaged in a run's directory: brought back and continued exactly, or named; nothing is thrown away."""

import json
import os
import shutil
import signal

import pytest
from prove_resume import compare_runs
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


def test_the_kill_itself(config, reference, tmp_path):
    assert json.loads((directory_of(config) / "run.json").read_text())["state"] == "running"
    assert checkpoint.read(directory_of(config) / NAME)["index"] == 2
    ended = run(tmp_path, config)
    assert ended.code == 0 and "continuing  from epoch 3, step 2" in ended.out and "warning" not in ended.out
    assert compare_runs(reference, directory_of(config)) == []


def test_a_loader_worker_that_dies_is_named(tiny, reference, tmp_path):
    """As the kernel kills one when memory runs out."""
    config = tiny(f"runs={tmp_path}", "data.workers=2")

    def kill_a_worker():
        import multiprocessing

        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    ended = run(tmp_path, config, after_step(7, kill_a_worker))
    assert ended.code == 2 and ended.err.startswith("error: a loader worker died, most often because memory ran out"), (
        ended.err
    )
    assert run(tmp_path, config | {"data": config["data"] | {"workers": 0}}).code == 0
    assert compare_runs(reference, directory_of(config)) == []


def test_a_lost_run_json_is_written_anew(config, reference, tmp_path):
    directory = directory_of(config)
    before = json.loads((directory / "run.json").read_text())
    (directory / "run.json").unlink()
    ended = run(tmp_path, config)
    assert (
        ended.code == 0 and f"warning: {directory} has lost its run.json; written anew from the checkpoint" in ended.out
    )
    assert compare_runs(reference, directory) == []
    after = json.loads((directory / "run.json").read_text())
    assert all(
        after[key] == before[key] for key in before if key not in ("state", "result", "end", "seconds", "continued")
    )


@pytest.mark.parametrize("content", [b"", b'{"state": "runn', b"{}"])
def test_a_damaged_run_json_stops_the_run_and_says_the_way_out(config, reference, tmp_path, content):
    directory = directory_of(config)
    (directory / "run.json").write_bytes(content)
    kept = {file: (directory / file).read_bytes() for file in (NAME, PREVIOUS, "metrics.jsonl")}
    ended = run(tmp_path, config)
    assert ended.code == 2 and "is damaged" in ended.err and "delete this one file" in ended.err
    assert all((directory / file).read_bytes() == content for file, content in kept.items())
    if content:
        return  # the way out is the same for all
    (directory / "run.json").unlink()
    assert run(tmp_path, config).code == 0
    assert compare_runs(reference, directory) == []


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
def test_metrics_are_brought_back(config, reference, tmp_path, damage):
    file = directory_of(config) / "metrics.jsonl"
    text = METRICS[damage](file.read_text())
    file.unlink()
    if text is not None:
        file.write_text(text)
    ended = run(tmp_path, config)
    assert ended.code == 0, ended.err
    assert ("warning" in ended.out) == ("more" not in damage)  # a kill leaves more, nothing but damage leaves less
    assert compare_runs(reference, directory_of(config)) == []


def test_a_damaged_checkpoint_costs_two_steps_and_no_byte(config, reference, tmp_path):
    directory = directory_of(config)
    content = bytearray((directory / NAME).read_bytes())
    content[len(content) // 2] ^= 4
    (directory / NAME).write_bytes(content)
    ended = run(tmp_path, config)
    assert ended.code == 0, ended.err
    assert f"warning: damaged checkpoint ({directory}/checkpoint.pt: its checksum does not match)" in ended.out
    assert "continuing  from epoch 3, step 0" in ended.out
    assert (directory / DAMAGED).read_bytes() == content
    assert compare_runs(reference, directory) == []


def test_no_usable_checkpoint_is_said_and_nothing_touched(config, tmp_path):
    directory = directory_of(config)
    for name in (NAME, PREVIOUS):
        (directory / name).write_bytes(b"rubbish")
    before = {file.name: file.read_bytes() for file in directory.iterdir() if file.name != "owner.lock"}
    ended = run(tmp_path, config)
    assert ended.code == 2 and "no usable checkpoint" in ended.err and "nothing was deleted; move " in ended.err
    assert {file.name: file.read_bytes() for file in directory.iterdir() if file.name != "owner.lock"} == before


def test_lost_checkpoints_are_not_taken_for_a_new_run(config, tmp_path):
    """Its two epochs on record would be overwritten."""
    directory = directory_of(config)
    for name in (NAME, PREVIOUS):
        (directory / name).unlink()
    metrics = (directory / "metrics.jsonl").read_bytes()
    ended = run(tmp_path, config)
    assert ended.code == 2 and "has 2 epochs, but there is no checkpoint to continue from" in ended.err
    assert (directory / "metrics.jsonl").read_bytes() == metrics


def test_killed_before_its_first_checkpoint_it_begins_anew(config, reference, tmp_path):
    directory = directory_of(config)
    for name in (NAME, PREVIOUS):
        (directory / name).unlink()
    first = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (directory / "metrics.jsonl").write_text(first)  # written, and the checkpoint after it was not
    assert run(tmp_path, config).code == 0
    assert compare_runs(reference, directory) == []


def test_killed_between_the_last_checkpoint_and_run_json(tiny, reference, tmp_path):
    config = tiny(f"runs={tmp_path}")
    directory = shutil.copytree(reference, directory_of(config))
    state = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(state | {"state": "running", "result": None, "end": None}))
    ended = run(tmp_path, config)
    assert ended.code == 0 and "epoch   3/3" not in ended.out
    assert compare_runs(reference, directory) == []


def test_a_finished_run_that_lost_its_metrics_gets_them_back(tiny, reference, tmp_path):
    """collect names it; without its run.json the same command brings both back, and trains nothing."""
    config = tiny(f"runs={tmp_path}")
    directory = shutil.copytree(reference, directory_of(config))
    (directory / "metrics.jsonl").unlink()
    (directory / "run.json").unlink()
    ended = run(tmp_path, config)
    assert ended.code == 0 and "epoch   3/3" not in ended.out
    assert compare_runs(reference, directory) == []


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


def test_collect_names_damaged_runs_and_goes_on(tiny, reference, killed, tmp_path):
    from lcm.reporting.collect import collect

    whole = tiny(f"runs={tmp_path}/runs")
    shutil.copytree(reference, directory_of(whole))
    for number, (file, content) in enumerate(
        [
            ("run.json", b""),
            ("run.json", b"\xff\xfe"),
            ("run.json", b"[]"),
            ("metrics.jsonl", b"{"),
            ("metrics.jsonl", None),
        ],
        1,
    ):
        directory = shutil.copytree(
            reference, tmp_path / "runs" / "digits" / "resnet20" / "lcm2" / f"seed{number}-damaged"
        )
        if content is None:
            (directory / file).unlink()
        else:
            (directory / file).write_bytes(content)
    shutil.copytree(killed, tmp_path / "runs" / "digits" / "resnet20" / "se" / "seed0-killed")
    summary = collect(tmp_path / "runs", tmp_path / "results")
    assert (len(summary.rows), len(summary.damaged), len(summary.unfinished)) == (1, 5, 1)
    assert all(f"seed{number}-damaged" in str(summary) for number in range(1, 6))
