"""The state of runs, read from their directories: no torch, no pandas, a thousand at once."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from lcm.config.identity import differing, identity
from lcm.errors import UserError, plural
from lcm.runs.directory import data_name
from lcm.runs.lock import is_owned
from lcm.runs.state import read_state
from lcm.training.progress import clock

PATH = ("data.name", "data.label", "model.name", "attention.name")  # in a run's directory
STATES = ("finished", "live", "stopped", "failed", "to do")


class Status(NamedTuple):
    """How far a run is. None where something is not known.

    state: finished; live (a process trains it now); stopped (begun, and no process trains it: the
    same command continues it); failed; to do (never started).
    top1: percent, of its last epoch. left: seconds. pace: seconds per epoch. config: resolved.
    """

    directory: Path
    state: str
    epoch: int = 0
    epochs: int | None = None
    top1: float | None = None
    left: float | None = None
    message: str | None = None
    pace: float | None = None
    config: dict | None = None


def status_of(directory):
    """The Status of one run directory, which need not exist."""
    owned = is_owned(directory)  # asked first: what ends after this has written its end
    try:
        state = read_state(directory)
    except UserError as damage:
        return Status(directory, "failed", message=str(damage))
    row = last_row(directory)
    epoch, epochs = row.get("epoch", 0), state.get("epochs")
    pace = row["seconds"] / epoch if epoch else None
    status = Status(
        directory,
        state=state.get("state", "to do"),
        epoch=epoch,
        epochs=epochs,
        top1=row.get("test_top1"),
        message=state.get("message"),
        pace=pace,
        config=state.get("config"),
    )
    # An owner that has written `finished` is only about to let go.
    if owned and status.state != "finished":
        left = pace * (epochs - epoch) if epoch and epochs else None
        return status._replace(state="live", left=left, message=None)
    if status.state == "running":
        return status._replace(state="stopped", message="killed, or its machine went down")
    return status


def statuses_of(runs):
    """The Status of each GridRun, with its config."""
    return [status_of(run.directory)._replace(config=run.config) for run in runs]


def last_row(directory):
    """What metrics.jsonl, which is always written whole, says of its last epoch; {} without one."""
    try:
        row = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
        return {key: row[key] for key in ("epoch", "seconds", "test_top1")}
    except (OSError, LookupError, TypeError, ValueError):
        return {}


def varied(configs):
    """For each config {key: value}: what tells it from the others, its path and its seed apart."""
    # Two questions: do the schedules differ among the runs of one path, and what differs among
    # those of one path and schedule? The keys that only follow from a schedule's name stay out.
    flat = [identity(config or {}) for config in configs]
    places = [(_names(one, PATH), _names(one, (*PATH, "schedule.name"))) for one in flat]
    groups = defaultdict(list)
    for one, (path, path_and_schedule) in zip(flat, places, strict=True):
        groups[path].append({"schedule.name": one.get("schedule.name")})
        groups[path_and_schedule].append(one)
    differ = {names: differing(group).keys() - {"seed"} for names, group in groups.items()}
    found = []
    for one, names in zip(flat, places, strict=True):
        keys = [key for name in names for key in sorted(differ[name]) if key in one]
        found.append({key.removesuffix(".name"): one[key] for key in keys})
    return found


def _names(flat, keys):
    return json.dumps([flat.get(key) for key in keys])


def time_left(statuses):
    """The time of a grid's unfinished runs in words: "about 12 min 5 s", "not known yet".

    A run's pace is the median over the grid's runs of its data, network and precision that have
    made epochs.
    """
    paces, seconds, unknown = defaultdict(list), 0.0, 0
    for status in statuses:
        if status.pace:
            paces[_kind(status.config)].append(status.pace)
    for status in statuses:
        if status.state == "finished":
            continue
        if known := paces.get(_kind(status.config)):
            seconds += (status.config["schedule"]["epochs"] - status.epoch) * median(known)
        else:
            unknown += 1
    if not unknown:
        return f"about {clock(seconds)}"
    rest = f"{plural(unknown, 'run')} of unknown length"
    return f"about {clock(seconds)} and {rest}" if seconds else "not known yet"


def _kind(config):
    """What decides how long an epoch takes."""
    return data_name(config), config["model"]["name"], config["precision"], config["compile"]


def totals(statuses):
    """ "42 runs: 30 finished, 1 live, 11 to do" """
    numbers = Counter(status.state for status in statuses)
    parts = [f"{numbers[state]} {state}" for state in STATES if numbers[state]]
    return f"{plural(len(statuses), 'run')}: {', '.join(parts) or 'none'}"


def table(statuses, runs=None):
    """One line per run: path below `runs` and varied keys, state, epochs, top-1, remark.

    The remark is the time left, or what went wrong.
    """
    lines = [("run", "state", "epochs", "test top-1", "")]
    for status, settings in zip(statuses, varied([s.config for s in statuses]), strict=True):
        name = status.directory
        if runs is not None and name.is_relative_to(runs):
            name = name.relative_to(runs)
        epochs = f"{status.epoch}/{status.epochs}" if status.epochs else ""
        top1 = "" if status.top1 is None else f"{status.top1:.2f} %"
        remark = status.message or ("" if status.left is None else f"{clock(status.left)} left")
        name = "  ".join([str(name), *(f"{key}={value}" for key, value in settings.items())])
        lines.append((name, status.state, epochs, top1, " ".join(str(remark).split())))
    run, state, epochs, top1, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        f"{a:{run}}  {b:{state}}  {c:>{epochs}}  {d:>{top1}}  {e}".rstrip()
        for a, b, c, d, e in lines
    )
