"""A disk that fills up, a file that must not grow, a folder that cannot be written: one message, nothing lost, continued."""

import contextlib
import os
import resource
import shutil
import subprocess

import pytest
from tiny import directory_of, place_of, state_of

import lcm.runs.run
from lcm.training import checkpoint
from lcm.training.log import RunLog

FULL = "what was saved before is intact; make room and run the same command again\n"


@pytest.fixture
def mounted(request, tmp_path):
    """A file system of 4 MB: a run of the tiny setting takes 2 while it saves."""
    if not request.config.getoption("--as-root", default=False):
        pytest.skip("mounts a file system: --as-root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def fill(mounted):
    """A function: leave not one byte on the disk when `name` of `holder` is called for the second time."""

    def fill_then(holder, name):
        original, calls = getattr(holder, name), []

        def called(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                with open(mounted / "ballast", "ab", buffering=0) as ballast:
                    for size in (2**16, 1):
                        with contextlib.suppress(OSError):
                            while True:
                                ballast.write(b"x" * size)
            return original(*args, **kwargs)

        setattr(holder, name, called)

    return fill_then


@pytest.mark.parametrize(
    "where, place",
    [
        ((RunLog, "append"), (2, 0)),
        ((checkpoint, "save"), (2, 0)),
        ((lcm.runs.run, "write_state"), (4, 0)),
    ],
    ids=["metrics", "checkpoint", "the end"],
)
def test_full_while_it_trains(tiny, ends, finishes_exactly, mounted, fill, where, place):
    config = tiny(f"runs={mounted}", "tensorboard=true")
    ended = ends(
        config, 2, "error: no space left while writing ", FULL, prepare=lambda: fill(*where)
    )
    assert ended.err.count("\n") == 1 and state_of(config)["state"] in ("running", "stopped")
    assert place_of(config) == place
    ends(config, 2, FULL)  # still full
    assert place_of(config) == place
    (mounted / "ballast").unlink()
    finishes_exactly(config, f"continuing  from epoch {place[0]}")
    assert not [name for name in os.listdir(directory_of(config)) if name.endswith(".tmp")]


def test_a_limit_on_the_size_of_files(tiny, ends, finishes_exactly, tmp_path):
    """As a full disk, where nothing can be mounted: the kernel really refuses to write a checkpoint."""
    config = tiny(f"runs={tmp_path}")
    message = f"error: cannot write {directory_of(config)}/checkpoint.pt (File too large)"
    ends(
        config,
        2,
        message,
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert not (directory_of(config) / checkpoint.NAME).exists()
    finishes_exactly(config)


def test_a_folder_that_only_can_be_read(tiny, ends, reference, mounted):
    """A new run cannot be written; the same command shows somebody else's finished one."""
    shutil.copytree(reference, mounted / "run", ignore=shutil.ignore_patterns("checkpoint*"))
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    where = f"error: cannot write {mounted}/runs/digits/resnet20/lcm2/seed0-"
    ends(
        tiny(f"runs={mounted}/runs"),
        2,
        where,
        "check the folder's owner and permissions, or choose another folder",
    )
    assert (
        f"already finished: {mounted}/run\ntest top-1 "
        in ends(tiny(f"run_directory={mounted}/run"), 0).out
    )
