"""run.json: the state of a run, its config and environment, and its result."""

import functools
import json
import platform
import socket
import subprocess
from pathlib import Path

import lcm
from lcm.config.identity import config_hash, deviations, identity
from lcm.errors import UserError, listed
from lcm.files import ROOT, unreadable, write_atomically
from lcm.runs.directory import data_name, now, run_name

PROGRAM = ("lcm", "configs", "hydra_plugins", "train.py")  # what a run's numbers come from
KEPT = ("state", "config", "config_hash", "data_fingerprint", "epochs")  # read without asking again


def read_state(directory):
    """run.json as a dict, {} where there is none. Raises UserError where it is damaged."""
    file = Path(directory) / "run.json"
    try:
        state = json.loads(file.read_text())
        if lacking := [key for key in KEPT if key not in state]:
            raise ValueError(f"no {lacking[0]} in it")
        return state
    except FileNotFoundError:
        return {}
    except OSError as error:  # also one that passes, of a network folder: nothing is damaged
        raise unreadable(file, error) from error
    except (ValueError, TypeError) as error:  # no JSON, or no object
        raise UserError(
            f"{file} is damaged ({error}): delete this one file; the same command restores it from "
            "the checkpoint and continues"
        ) from error


def write_state(directory, state):
    """Write run.json atomically."""
    write_atomically(Path(directory) / "run.json", (json.dumps(state, indent=1) + "\n").encode())


def refuse_another_config(directory, state, config):
    """Raise UserError where the directory holds a run of another config, with the differences."""
    if "config" not in state or config_hash(state["config"]) == config_hash(config):
        return
    old, new = identity(state["config"]), identity(config)
    other = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    lines = [f"{key}: {old.get(key, '-')} there, {new.get(key, '-')} here" for key in other]
    lines.append("choose another directory, or use that config")
    raise listed(f"{directory} holds a run of another config:", lines)


@functools.cache  # of the code that runs, not of what is committed while a sweep goes on
def commit():
    """(commit, dirty) of the checkout that this code runs from; (None, False) outside of one.

    dirty: a file of PROGRAM differs from the commit, or is not in it.
    """
    if not (ROOT / ".git").exists():
        return None, False
    # Untracked files count: a module of one's own, dropped into the package, is part of the code.
    changed = ["status", "--porcelain", "--untracked-files=all", "--", *PROGRAM]
    try:
        head, status = (
            subprocess.check_output(
                # in a container the checkout may be somebody else's
                ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words],
                text=True,
                timeout=10,
                stderr=subprocess.DEVNULL,
            )
            for words in (["rev-parse", "HEAD"], changed)
        )
    except (OSError, subprocess.SubprocessError):
        return None, False
    return head.strip(), bool(status.strip())


def environment(device):
    """What a run's numbers depend on besides its config; `device` in words."""
    # Not at the top: scripts that only read run.json start without torch.
    import torch

    cuda = torch.version.cuda if torch.cuda.is_available() else None
    head, dirty = commit()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lcm": lcm.__version__,
            **({"cuda": cuda} if cuda else {}),
        },
        "device": device,
        "commit": head,
        "dirty": dirty,
    }


def continued(state, here):
    """`state` of a run that continues now: one interruption more, and the environment if new."""
    # Compared with the last part: a way back to the first machine is a new part, too.
    parts = state.get("continued", [])
    before = {key: (parts[-1] if parts else state).get(key) for key in here}
    parts = parts if before == here else [*parts, {"start": now(), **here}]
    return state | {"continued": parts, "interruptions": state.get("interruptions", 0) + 1}


def other_images(directory, config):
    """What to tell a user whose images are not those that a run was begun with."""
    another = "data.label=NAME" if "label" in config["data"] else "run_directory=FOLDER"
    return (
        f"{directory} was trained on other images of the same name (another copy, order or "
        "preparation; files that were added, removed, renamed or changed): give data.root the "
        f"images it began with, or start a new run with {another}"
    )


def begun(config, directory, state, saved, data, complexity, threads, here):
    """run.json of a run that begins now, or continues the one that `state` and `saved` have.

    state: run.json so far, {} for a new run. saved: its checkpoint, None where there is none: the
    run then starts from nothing. here: the environment of now, with the sources.
    Raises UserError where it would continue with other images.
    """
    if saved:
        if state["data_fingerprint"] != data.fingerprint:
            raise UserError(other_images(directory, config))
        return continued(state, here)
    new = {
        "state": "running",
        "message": None,
        "run": run_name(config),
        "data": data_name(config),
        **{group: config[group]["name"] for group in ("model", "attention", "schedule")},
        "seed": config["seed"],
        "precision": config["precision"],
        "compile": config["compile"],
        "deviations": deviations(config),
        "epochs": config["schedule"]["epochs"],
        "config": config,
        "config_hash": config_hash(config),
        "params": complexity.params,
        "gfloat": complexity.gfloat,
        "macs": None if complexity.uncounted else complexity.macs,  # not too small a number
        "threads": threads,
        "data_fingerprint": data.fingerprint,
        "num_classes": data.num_classes,
        **here,
        "result": None,
        "continued": [],
        # No number comes from an earlier start: its environment goes, and it is only counted.
        "interruptions": state.get("interruptions", 0) + 1 if state else 0,
        "host": socket.gethostname(),
        "start": now(),
        "end": None,
        "seconds": 0.0,
    }
    if files := getattr(data, "files", None):  # of class folders: a digest of their list
        new["data_files"] = files
    if notes := getattr(data, "notes", []):  # where its images differ from the protocol's
        new["deviations"]["data.notes"] = notes
    return new
