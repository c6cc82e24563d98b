"""A disk that fills up, a file that must not grow, a folder that cannot be written: one message, nothing lost, continued."""

import json
import os
import resource
import shutil
import subprocess

import pytest
from prove_resume import compare_runs
from tiny import directory_of, run

from lcm.training import checkpoint


def mount(place, options):
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB: a run of the tiny setting takes 2 while it saves."""
    place = tmp_path / "disk"
    mount(place, "size=4m")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk):
    """Leave not one byte."""
    with open(disk / "ballast", "ab", buffering=0) as ballast:
        for size in (2**16, 1):
            try:
                while True:
                    ballast.write(b"x" * size)
            except OSError:
                continue


def fill_at(disk, holder, name, call):
    """Arrange that the disk is full from the `call`-th time on that holder.name is called."""

    def prepare():
        original, calls = getattr(holder, name), []

        def called(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                fill(disk)
            return original(*args, **kwargs)

        setattr(holder, name, called)

    return prepare


def check_message(ended):
    assert ended.code == 2, ended
    assert ended.err.startswith("error: no space left while writing ") and ended.err.count("\n") == 1, ended.err
    assert "what was saved before is intact; make room and run the same command again" in ended.err


@pytest.mark.parametrize("moment", ["metrics", "checkpoint", "the end"])
def test_full_while_it_trains(tiny, reference, small_disk, tmp_path, moment):
    import lcm.runs.state
    from lcm.training.log import RunLog

    config = tiny(f"runs={small_disk}", "tensorboard=true")
    directory = directory_of(config)
    where = {
        "metrics": (RunLog, "append", 2),
        "checkpoint": (checkpoint, "save", 2),
        "the end": (lcm.runs.state, "write_state", 2),
    }
    ended = run(tmp_path, config, fill_at(small_disk, *where[moment]))
    check_message(ended)
    assert json.loads((directory / "run.json").read_text())["state"] in ("running", "stopped")
    saved = checkpoint.read(directory / checkpoint.NAME)
    assert (saved["epoch"], saved["index"]) == ((4, 0) if moment == "the end" else (2, 0))
    check_message(run(tmp_path, config))  # still full
    assert checkpoint.read(directory / checkpoint.NAME)["epoch"] == saved["epoch"]
    (small_disk / "ballast").unlink()
    ended = run(tmp_path, config)
    assert ended.code == 0 and f"continuing  from epoch {saved['epoch']}" in ended.out, ended.err
    assert compare_runs(reference, directory) == []
    assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]


def test_full_from_the_start(tiny, reference, small_disk, tmp_path):
    config = tiny(f"runs={small_disk}")
    fill(small_disk)
    check_message(run(tmp_path, config))
    (small_disk / "ballast").unlink()
    assert run(tmp_path, config).code == 0
    assert compare_runs(reference, directory_of(config)) == []


def test_a_limit_on_the_size_of_files(tiny, reference, tmp_path):
    """As a full disk, where nothing can be mounted: the kernel really refuses to write a checkpoint."""
    config = tiny(f"runs={tmp_path}")

    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    ended = run(tmp_path, config, prepare)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.startswith(f"error: cannot write {directory_of(config)}/checkpoint.pt (File too large)")
    assert not (directory_of(config) / checkpoint.NAME).exists()
    assert run(tmp_path, config).code == 0
    assert compare_runs(reference, directory_of(config)) == []


@pytest.fixture
def locked(tmp_path):
    """A folder, and a function after which it can only be read."""
    place = tmp_path / "locked"
    if os.getuid() == 0:  # who may write everywhere but on a file system that is mounted so
        mount(place, "size=4m")
        yield place, lambda: subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        subprocess.run(["umount", place], check=True)
    else:
        place.mkdir()
        yield place, lambda: [folder.chmod(0o555) for folder in (place, *place.rglob("*")) if folder.is_dir()]
        for folder in (place, *place.rglob("*")):
            folder.chmod(0o755)


def test_a_folder_that_cannot_be_written(tiny, locked, tmp_path):
    place, lock = locked
    lock()
    ended = run(tmp_path, tiny(f"runs={place}/runs"))
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"error: cannot write {place}/runs/digits/resnet20/lcm2/seed0-")
    assert "check the folder's owner and permissions, or set runs=ANOTHER_FOLDER" in ended.err


def test_a_finished_run_that_only_can_be_read(tiny, reference, locked, tmp_path):
    """Somebody else's results: the same command shows them."""
    place, lock = locked
    shutil.copytree(reference, place / "run", ignore=shutil.ignore_patterns("checkpoint*"))
    lock()
    ended = run(tmp_path, tiny(f"run_directory={place}/run"))
    assert ended.code == 0 and f"already finished: {place}/run\ntest top-1 " in ended.out, ended.err
