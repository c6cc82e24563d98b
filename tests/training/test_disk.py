"""A disk that fills up, a file that must not grow, a folder that cannot be written: one message, nothing lost, continued."""

import json
import os
import resource
import shutil
import subprocess

import pytest
from tiny import directory_of, run

from lcm.training import checkpoint


@pytest.fixture
def mounted(request, tmp_path):
    """A file system of 4 MB: a run of the tiny setting takes 2 while it saves."""
    if not request.config.getoption("--as-root", default=False):
        pytest.skip("mounts a file system: --as-root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
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
def test_full_while_it_trains(tiny, finishes_exactly, mounted, tmp_path, moment):
    import lcm.runs.state
    from lcm.training.log import RunLog

    config = tiny(f"runs={mounted}", "tensorboard=true")
    directory = directory_of(config)
    where = {
        "metrics": (RunLog, "append", 2),
        "checkpoint": (checkpoint, "save", 2),
        "the end": (lcm.runs.state, "write_state", 2),
    }
    ended = run(tmp_path, config, fill_at(mounted, *where[moment]))
    check_message(ended)
    assert json.loads((directory / "run.json").read_text())["state"] in ("running", "stopped")
    saved = checkpoint.read(directory / checkpoint.NAME)
    assert (saved["epoch"], saved["index"]) == ((4, 0) if moment == "the end" else (2, 0))
    check_message(run(tmp_path, config))  # still full
    assert checkpoint.read(directory / checkpoint.NAME)["epoch"] == saved["epoch"]
    (mounted / "ballast").unlink()
    ended = finishes_exactly(config)
    assert f"continuing  from epoch {saved['epoch']}" in ended.out
    assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]


def test_full_from_the_start(tiny, finishes_exactly, mounted, tmp_path):
    config = tiny(f"runs={mounted}")
    fill(mounted)
    check_message(run(tmp_path, config))
    (mounted / "ballast").unlink()
    finishes_exactly(config)


def test_a_limit_on_the_size_of_files(tiny, finishes_exactly, tmp_path):
    """As a full disk, where nothing can be mounted: the kernel really refuses to write a checkpoint."""
    config = tiny(f"runs={tmp_path}")

    def prepare():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    ended = run(tmp_path, config, prepare)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.startswith(f"error: cannot write {directory_of(config)}/checkpoint.pt (File too large)")
    assert not (directory_of(config) / checkpoint.NAME).exists()
    finishes_exactly(config)


def test_a_folder_that_cannot_be_written(tiny, mounted, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    ended = run(tmp_path, tiny(f"runs={mounted}/runs"))
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"error: cannot write {mounted}/runs/digits/resnet20/lcm2/seed0-")
    assert "check the folder's owner and permissions, or choose another folder" in ended.err


def test_a_finished_run_that_only_can_be_read(tiny, reference, mounted, tmp_path):
    """Somebody else's results: the same command shows them."""
    shutil.copytree(reference, mounted / "run", ignore=shutil.ignore_patterns("checkpoint*"))
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    ended = run(tmp_path, tiny(f"run_directory={mounted}/run"))
    assert ended.code == 0 and f"already finished: {mounted}/run\ntest top-1 " in ended.out, ended.err
