"""One run's identity, directory, owner and state.

A run is a directory, `runs/<data>/<model>/<attention>/seed<k>-<hash8>/`, that follows from the config alone: the same command
finds it again, continues it or sees that it is finished. One process owns it at a time.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import socket
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from lcm.config import config_hash, identity
from lcm.errors import UserError

# Exit codes of train.py; the README documents them.
FINISHED, FAILED, BAD_INPUT, OWNED_ELSEWHERE, STOPPED = 0, 1, 2, 3, 75


class OwnedElsewhere(Exception):
    """Another live process trains this run."""


def run_name(config):
    """`<data>/<model>/<attention>/seed<k>-<hash8>`: where the run of this config lies below the runs folder."""
    names = [config[group]["name"] for group in ("data", "model", "attention")]
    return "/".join([*names, f"seed{config['seed']}-{config_hash(config)[:8]}"])


def run_directory(config):
    """The run's directory: `config["run_directory"]` where it is set, its own place below `config["runs"]` otherwise."""
    return Path(config["run_directory"] or Path(config["runs"]) / run_name(config))


def now():
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_atomically(file, data: bytes):
    """Write `data` so that a reader, or a restart after a kill, sees the old file or the new one, never a part.

    Raises UserError where the disk is full or the place cannot be written; the old file is intact then.
    """
    file = Path(file)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(file, error) from error
    sync_directory(file.parent)


def sync_directory(directory):
    """Make renames in a directory last through a power cut; file systems that cannot are let be."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(file, error):
    """The UserError for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left while writing {file}: what was saved before is intact; make room and run the same command again"
        )
    return UserError(
        f"cannot write {file} ({error.strerror}): check the folder's owner and permissions, or set runs=ANOTHER_FOLDER"
    )


def read_state(directory):
    """run.json as a dict, {} where there is none. Raises UserError where it is damaged."""
    file = Path(directory) / "run.json"
    try:
        state = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): move the run's directory away to start it anew") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is damaged (not a JSON object): move the run's directory away to start it anew")
    return state


def write_state(directory, state):
    """Write run.json atomically."""
    write_atomically(Path(directory) / "run.json", (json.dumps(state, indent=1) + "\n").encode())


def refuse_another_config(directory, state, config):
    """Raise UserError where the directory holds a run of another config; the message shows each difference."""
    if "config" not in state or config_hash(state["config"]) == config_hash(config):
        return
    old, new = identity(state["config"]), identity(config)
    lines = [
        f"  {k}: {old.get(k, '-')} there, {new.get(k, '-')} here"
        for k in sorted({*old, *new})
        if old.get(k) != new.get(k)
    ]
    raise UserError(
        f"{directory} holds a run of another config:\n"
        + "\n".join(lines)
        + "\ntake another directory, or the config that it has"
    )


@contextlib.contextmanager
def owner(directory):
    """Own a run's directory while the block runs; the kernel releases it when the process ends, however it ends.

    POSIX record locks: they work on shared folders and are not inherited by loader workers.
    Raises OwnedElsewhere, naming host, process and since when, where another live process owns it.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = open(directory / "owner.lock", "a+")  # noqa: SIM115  held open as long as the lock
    except OSError as error:
        raise unwritable(directory, error) from error
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            stream.seek(0)
            raise OwnedElsewhere(
                f"{directory} is being trained by {stream.read().strip() or 'another process'}"
            ) from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
        stream.flush()
        yield


def is_owned(directory):
    """Whether a live process, other than this one, owns the run's directory."""
    try:
        with open(Path(directory) / "owner.lock", "r+") as stream:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def commit():
    """(commit, dirty) of the checkout that this code runs from; (None, False) outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None, False
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", "lcm", "configs", "train.py"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, False
    return (head.stdout.strip(), bool(status.stdout.strip())) if head.returncode == 0 else (None, False)


def new_state(config, directory, **facts):
    """run.json of a run that starts; `facts` are what only the caller knows (params, gfloat, device, ...)."""
    from lcm.config import deviations

    head, dirty = commit()
    return {
        "state": "running",
        "message": None,
        "run": run_name(config),
        **{group: config[group]["name"] for group in ("data", "model", "attention", "schedule")},
        "seed": config["seed"],
        "precision": config["precision"],
        "compile": config["compile"],
        "deviations": deviations(config),
        "epochs": config["schedule"]["epochs"],
        "config": config,
        "config_hash": config_hash(config),
        **facts,
        "result": None,
        "commit": head,
        "dirty": dirty,
        "host": socket.gethostname(),
        "start": now(),
        "end": None,
        "seconds": 0.0,
    }


def versions():
    """Versions of what a run's numbers depend on."""
    import torch

    import lcm

    found = {"python": platform.python_version(), "torch": torch.__version__, "lcm": lcm.__version__}
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found
