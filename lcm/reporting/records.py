"""Run directories and their records: found, read, checked, written. Without pandas: status.py and
repeat.py read runs too.

A record, `metrics/<data>-<model>-<attention>-seed<k>-<hash8>.jsonl`, begins with the line
`{"run": {...}, "columns": [...]}`: the run's run.json without what belongs to a machine (host,
folders), and the names of the columns. Then follows one JSON array per epoch. Run directories and
records may come from anybody: nothing in them is used before `check` has passed.

A run is read as (run, epochs): its run.json as a dict, and {column: [its value in each epoch]}.
"""

import contextlib
import functools
import json
import math
import os
import re
from pathlib import Path

from lcm.config.check import RULES
from lcm.config.compose import flatten
from lcm.errors import plural
from lcm.files import unreadable

# the states that enter results; running and stopped runs will change
RECORDED = ("finished", "failed")
# The columns of runs.csv with their pandas dtypes. Accuracies in percent, of the last epoch unless
# named `best`, which is chosen on the test set and never used as a result; `seconds` of training
# and evaluation. `data_verified`: the images were compared with the official ones; empty where a
# data set has no such key. Device, versions and commit are "A, then B" where a run was continued
# elsewhere; `dirty`: in any of its parts.
COLUMNS = {
    **dict.fromkeys(("run", "state", "data", "model", "attention"), "str"),
    "seed": "Int64",
    **dict.fromkeys(("schedule", "precision"), "str"),
    "compile": "boolean",
    "deviations": "str",  # JSON
    **dict.fromkeys(("epochs", "params"), "Int64"),
    "gfloat": "float64",
    "macs": "Int64",
    **dict.fromkeys(("test_top1", "test_top5", "best_test_top1"), "float64"),
    "best_epoch": "Int64",
    **dict.fromkeys(("train_loss", "train_top1", "test_loss", "seconds"), "float64"),
    **dict.fromkeys(("device", "python", "torch", "lcm", "commit"), "str"),
    "dirty": "boolean",
    **dict.fromkeys(("config_hash", "data_fingerprint"), "str"),
    "data_verified": "boolean",
    **dict.fromkeys(("start", "end", "message"), "str"),
}
# Columns only where a run has them. own_...: the digest of a module's source where it is the user's
# own; empty where it is the repository's, and where the record does not say.
OPTIONAL = dict.fromkeys(("own_attention", "own_model", "rounding"), "str")
# What `rounding` names where a run has other values: they change numbers by rounding alone.
STANDARD = {"channels_last": True, "deterministic": False, "model.memory": "fast"}
NAMES = ("data", "model", "attention", "schedule", "precision")  # they enter file names
REQUIRED = (*NAMES, "run", "state", "seed", "epochs", "config_hash")
LAST_EPOCH = ("train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
RESULT = (*LAST_EPOCH, "best_test_top1", "best_epoch")
# a run that has begun has at least one of them
BEGUN = ("run.json", "metrics.jsonl", "checkpoint.pt")


class DamagedRecord(Exception):
    """A run, or its record, that cannot be trusted; the text says why."""


@contextlib.contextmanager
def _reading(what):
    """A file from anybody: whatever reading it fails with is a DamagedRecord that says where."""
    try:
        yield
    # ValueError comes from JSON, UTF-8 and numbers of thousands of digits, RecursionError from
    # deep brackets; AttributeError, KeyError and TypeError come from facts of another shape.
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedRecord(f"{what} is missing or damaged ({reason})") from None


# NaN and Infinity are not JSON: read as null.
_json = functools.partial(json.loads, parse_constant=lambda name: None)


# pandas dtype: whether a value of run.json, which may come from anybody, has it
# By type(): True is an instance of int. Whole numbers have to fit into the 64 bits of Int64.
FITS = {
    "str": lambda value: isinstance(value, str) and value.isprintable(),
    "boolean": lambda value: type(value) is bool,
    "Int64": lambda value: type(value) is int and 0 <= value < 2**63,
    "float64": lambda value: type(value) in (int, float) and math.isfinite(value),
}


def _in_turn(parts, key):
    """What the parts of a run say: one value, or "A, then B" where it was continued elsewhere."""
    return ", then ".join(dict.fromkeys(part[key] for part in parts if part.get(key))) or None


def row(run):
    """A run.json as a row of runs.csv: {column: value}, None for what it does not say."""
    result, own, config = run.get("result") or {}, run.get("own_source") or {}, run["config"]
    settings = flatten(config)
    rounding = [f"{k}={settings[k]}" for k, v in STANDARD.items() if settings.get(k, v) != v]
    # One part for each environment: that of the beginning, then those of the continuations.
    parts = [run, *(run.get("continued") or [])]
    versions = [part.get("versions") or {} for part in parts]
    # All columns from the top level of run.json, then those that lie deeper or join all parts.
    return {
        **{key: run.get(key) for key in COLUMNS},
        **{key: result.get(key) for key in RESULT},
        **{key: _in_turn(parts, key) for key in ("device", "commit")},
        **{key: _in_turn(versions, key) for key in ("python", "torch", "lcm")},
        "dirty": any(part.get("dirty") for part in parts),
        "deviations": json.dumps(run["deviations"], sort_keys=True, separators=(",", ":")),
        "data_verified": config["data"].get("verify"),
        # an exception's text can be anything; the record keeps it as it is
        "message": "".join(c if c.isprintable() else " " for c in run.get("message") or ""),
        "own_attention": own.get("attention"),
        "own_model": own.get("model"),
        "rounding": " ".join(rounding) or None,
    }


def check(run, epochs):
    """Raise DamagedRecord unless a finished or failed run and its epochs are complete and agree."""
    with _reading("run.json"):
        facts = row(run)
    finished = facts["state"] == "finished"
    # Types first: the code below formats and matches values, and would raise something else.
    for key, dtype in (COLUMNS | OPTIONAL).items():
        needed = key in REQUIRED or (finished and key in RESULT)
        fits = not needed if facts[key] is None else FITS[dtype](facts[key])
        if not fits or (key in NAMES and not RULES["data.label"].fits(facts[key])):
            kind = "a name" if key in NAMES else dtype.lower().rstrip("64")
            raise DamagedRecord(f"run.json: {key} is {json.dumps(facts[key])[:80]}, not {kind}")
    # `run` becomes the name of a file. The names in it have passed, so none of them is `..` or
    # holds a `/`; here `run` has to be what they make.
    name = "{data}/{model}/{attention}/seed{seed}-{config_hash:.8}".format_map(facts)
    known = facts["state"] in RECORDED and re.fullmatch("[0-9a-f]{64}", facts["config_hash"])
    if not known or facts["run"] != name:
        raise DamagedRecord(
            f"run.json: {facts['run']} is {facts['state']}; its own facts say {name}"
        )
    # 1e999 is a valid number in JSON, and is read as infinity.
    if not all(
        value is None or FITS["float64"](value) for values in epochs.values() for value in values
    ):
        raise DamagedRecord("metrics.jsonl: a value is not a number")
    if finished:
        # A range of the length that was read: `epochs` in run.json may be any number.
        count = len(epochs.get("epoch", ()))
        if epochs.get("epoch") != [*range(1, count + 1)] or count != facts["epochs"] or not count:
            raise DamagedRecord(
                f"metrics.jsonl has {plural(count, 'epoch')} of {facts['epochs']}, or not in order"
            )
        # Tables take run.json's result, curves the epochs: both have to say the same.
        last = {key: epochs[key][-1] for key in LAST_EPOCH if key in epochs}
        if last != {key: facts[key] for key in LAST_EPOCH}:
            raise DamagedRecord(
                f"the result of run.json is not the last line of metrics.jsonl: {last}"
            )


def read_run(directory):
    """(run, epochs) of a run directory; no epochs where the run has not ended. DamagedRecord."""
    file, metrics = Path(directory) / "run.json", Path(directory) / "metrics.jsonl"
    with _reading(file.name):
        run = _json(file.read_text(encoding="utf-8"))
        # Still inside `_reading`: JSON that is no object has no `get`.
        ended = run.get("state") in RECORDED
    if not ended:
        return run, {}  # metrics.jsonl will change
    with _reading(metrics.name):
        # Only a run that failed before its first epoch may be without metrics.jsonl.
        begun = run["state"] == "finished" or metrics.exists()
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if begun else []
        rows = _json(f"[{','.join(lines)}]")  # as one list: an error then names its line
        columns = rows[0] if rows else ()
        epochs = {column: [values.get(column) for values in rows] for column in columns}
    check(run, epochs)
    return run, epochs


def _read_all(places, read):
    """([(run, epochs)], [what is damaged and why]) of directories or files."""
    found, damaged = [], []
    for place in places:
        try:
            found.append(read(place))
        except DamagedRecord as error:
            damaged.append(f"{place}: {error}")
    return found, damaged


def read_run_directories(folder):
    """([(run, epochs)] of the finished and failed runs below a folder, what is unfinished, what is
    damaged and why)."""
    found, damaged = _read_all(find_runs(folder), read_run)
    ended = [(run, epochs) for run, epochs in found if run.get("state") in RECORDED]
    others = [run for run, _ in found if run.get("state") not in RECORDED]
    return ended, [f"{run.get('run')}: {run.get('state')}" for run in others], damaged


def find_runs(folder, files_of_runs=BEGUN):
    """Every directory below `folder` with at least one of the files of a run, sorted. Links are
    followed, but for those that lead above it; a directory with several names is there once.

    Raises UserError for a directory that cannot be read: its runs would be missing without a word.
    """

    def refuse(error):
        if not isinstance(error, FileNotFoundError):  # somebody may move a run away meanwhile
            raise unreadable(error.filename, error) from error

    found, seen = [], {*Path(folder).resolve().parents}
    for directory, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(directory).resolve()
        is_run = not set(files_of_runs).isdisjoint(files)
        if is_run and here not in seen:
            found.append(Path(directory))
        # os.walk goes on with what is left in `folders`: nothing below a run, nothing twice.
        further = [] if is_run or here in seen else folders
        folders[:] = sorted(name for name in further if not name.startswith("."))
        seen.add(here)
    return sorted(found)


def record(run, epochs):
    """The text of a run's record; see the top of this file."""
    machine = ("runs", "run_directory", "root", "places", "cache_dir")
    config = {key: value for key, value in run["config"].items() if key not in machine}
    config["data"] = {key: value for key, value in config["data"].items() if key not in machine}
    run = {key: value for key, value in run.items() if key != "host"} | {"config": config}
    lines = [{"run": run, "columns": list(epochs)}, *zip(*epochs.values(), strict=True)]
    return "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)


def record_name(run):
    """The file name of the record of the run that is called `run`."""
    return run.replace("/", "-") + ".jsonl"


def read_record(file):
    """(run, epochs) of a record, as `read_run` gives them. Raises DamagedRecord."""
    with _reading("the record"):
        head, *rows = map(_json, file.read_text(encoding="utf-8").splitlines())
        run, columns = head["run"], head["columns"]
        # From rows to columns. Of no rows zip would make no columns at all.
        values = zip(*rows, strict=True) if rows else [[]] * len(columns)
        epochs = {key: list(found) for key, found in zip(columns, values, strict=True)}
    check(run, epochs)
    if file.name != record_name(run["run"]):
        raise DamagedRecord(f"is the record of {run['run']}")
    return run, epochs


def read_records(folder):
    """([(run, epochs)], [what is damaged and why]) of a folder of records."""
    files = sorted(Path(folder).glob("*.jsonl"))
    # that of a run is no record
    return _read_all([file for file in files if file.name != "metrics.jsonl"], read_record)
