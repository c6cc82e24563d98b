"""One run's identity, directory, owner and state.

A run is a directory, `runs/<data>/<model>/<attention>/seed<k>-<hash8>/`, that follows from the config alone: the same command
finds it again, continues it or sees that it is finished. One process owns it at a time.
"""

import contextlib
import fcntl
import json
import os
import platform
import socket
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

from lcm.config.check import config_hash, identity
from lcm.errors import NotFinite, OwnedElsewhere, Stopped, UserError
from lcm.files import unreadable, unwritable, write_atomically


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


def read_state(directory):
    """run.json as a dict, {} where there is none. Raises UserError where it is damaged."""
    file = Path(directory) / "run.json"
    try:
        state = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise UserError(f"{directory} is a file, or lies below one: a run needs a folder, take another place") from None
    except PermissionError as error:
        raise unreadable(file, error) from error
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error
    kinds = {"state": str, "config": dict, "config_hash": str, "data_fingerprint": str, "epochs": int}
    wrong = [key for key, kind in kinds.items() if not isinstance(state, dict) or not isinstance(state.get(key), kind)]
    if not wrong and state["state"] == "finished":
        result = state.get("result") if isinstance(state.get("result"), dict) else {}
        shown = ("test_top1", "test_top5", "best_test_top1", "best_epoch")
        wrong = [f"result.{key}" for key in shown if not isinstance(result.get(key), (int, float))]
    if wrong:
        raise damaged(file, f"no {wrong[0]} in it")
    return state


def damaged(file, reason):
    """The UserError for a run.json that is not what was written."""
    return UserError(
        f"{file} is damaged ({reason}): delete this one file; the same command writes it anew from the checkpoint and continues"
    )


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


def unfinished(directory, config):
    """run.json of a config's run that is not finished, {} where it is new; None where it is finished, and says so.

    Raises UserError where the directory holds another config's run, or run.json is damaged.
    """
    state = read_state(directory)
    refuse_another_config(directory, state, config)
    if state.get("state") == "finished":
        print(f"already finished: {directory}")
        return None
    return state


@contextlib.contextmanager
def recorded(directory, state):
    """Keep run.json while the block trains: `running` from its start, then how it ended. The block may add to `state`.

    Finished; stopped where a signal or something that a user can mend ended it; failed otherwise.
    """
    write_state(directory, state | {"state": "running", "message": None})
    outcome = {}
    try:
        yield
        outcome = {"state": "finished", "message": None, "end": now()}
    except (Stopped, UserError) as reason:
        outcome = {"state": "stopped", "message": str(reason)}
        raise
    except NotFinite as reason:
        outcome = {"state": "failed", "message": str(reason)}
        raise
    except BaseException as error:
        outcome = {"state": "failed", "message": f"{type(error).__name__}: {error}"}
        raise
    finally:
        try:
            write_state(directory, state | outcome)
        except UserError:
            if outcome["state"] == "finished":  # otherwise the first fault is the one to show, often a full disk too
                raise


_held = set()  # (process, device, inode) of the directories that are owned here; a fork inherits the set, but no lock


def _key(directory):
    found = os.stat(directory)
    return os.getpid(), found.st_dev, found.st_ino


@contextlib.contextmanager
def owner(directory):
    """Own a run's directory while the block runs; the kernel releases it when the process ends, however it ends.

    POSIX record locks: they work on shared folders and are not inherited by loader workers. Closing any descriptor of the lock
    file would release them, so that this process opens it only once.
    Raises OwnedElsewhere, naming host, process and since when, where another live process owns it.
    """
    directory = Path(directory)
    lock = directory / "owner.lock"
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        key = _key(directory)
        if key in _held:
            raise OwnedElsewhere(f"{directory} is being trained by this very {me}")
        stream = open(lock, "a+b", buffering=0)  # noqa: SIM115  held open as long as the lock
    except OSError as error:
        raise unwritable(directory, error) from error
    with stream:
        for _ in range(4):
            if _lock(stream, fcntl.LOCK_EX):
                break
            time.sleep(0.1)  # its owner may be about to write who it is, or someone only asked (is_owned)
        else:
            stream.seek(0)
            who = stream.read().decode(errors="replace").strip() or "another process"
            raise OwnedElsewhere(f"{directory} is being trained by {who}: wait for it, or stop it there first")
        try:
            stream.truncate(0)
            stream.write(f"{me} since {now()}\n".encode())
        except OSError as error:
            raise unwritable(lock, error) from error
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def _lock(stream, kind):
    """Whether the lock was free, and is held now. Raises UserError where the file system keeps no locks."""
    try:
        fcntl.lockf(stream, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise UserError(
            f"{stream.name} cannot be locked ({error.strerror}): two processes could train the same run; set runs= to a folder on "
            "a file system with locks"
        ) from error
    return True


def is_owned(directory):
    """Whether a live process owns the run's directory: another one, or this one."""
    directory = Path(directory)
    try:
        if _key(directory) in _held:
            return True
        with open(directory / "owner.lock", "rb") as stream:
            return not _lock(stream, fcntl.LOCK_SH)
    except OSError:
        return False


def commit():
    """(commit, dirty) of the checkout that this code runs from; (None, False) outside of one."""
    root = Path(__file__).resolve().parents[2]
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
    """run.json of a run that starts; `facts` are what only the caller knows (params, gfloat, ..., and `circumstances`)."""
    from lcm.config.check import deviations

    if "commit" not in facts:
        facts["commit"], facts["dirty"] = commit()
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
        "continued": [],
        "host": socket.gethostname(),
        "start": now(),
        "end": None,
        "seconds": 0.0,
    }


def circumstances(device):
    """What a run's numbers depend on beside its config: {"versions", "device", "commit", "dirty"}; `device` in words."""
    head, dirty = commit()
    return {"versions": versions(), "device": device, "commit": head, "dirty": dirty}


def continued(state, here):
    """`state` of a run that goes on now: under other circumstances, it says so in `continued`, and since when."""
    parts = state.get("continued", [])
    before = {key: (parts[-1] if parts else state).get(key) for key in here}
    return state if before == here else state | {"continued": [*parts, {"start": now(), **here}]}


def begun(config, directory, state, data, complexity, threads, device):
    """run.json of a run that begins now, or goes on where `state` is that of its earlier part; `device` in words.

    Raises UserError where it goes on with other images.
    """
    here = circumstances(device)
    if state:
        if state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{directory} was trained on other images of the same name (another copy, order or preparation of "
                f"{config['data']['name']}): give data.root the copy it began with, or start anew with run_directory=..."
            )
        return continued(state, here)
    counts = {"params": complexity.params, "gfloat": complexity.gfloat, "macs": complexity.macs}
    state = new_state(config, directory, **counts, threads=threads, data_fingerprint=data.fingerprint, **here)
    if notes := getattr(data, "notes", []):  # images that are not what the protocol asks for
        state["deviations"]["data.notes"] = notes
    return state


def versions():
    """Versions of what a run's numbers depend on."""
    import torch

    import lcm

    found = {"python": platform.python_version(), "torch": torch.__version__, "lcm": lcm.__version__}
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found
