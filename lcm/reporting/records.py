"""Run directories and their records: found, read, checked, written. Without pandas: status.py and repeat.py read runs too.

A record, `metrics/<data>-<model>-<attention>-seed<k>-<hash8>.jsonl`, begins with the line `{"run": {...}, "columns": [...]}`: the
run's run.json without what belongs to a machine (host, folders), and the names of the columns. Then follows one JSON array per
epoch. Run directories and records may come from anybody: nothing in them is used before `check` has passed.

A run is read as (run, epochs): its run.json as a dict, and {column: [its value in each epoch]}.
"""

import json
import os
import re
from pathlib import Path

from lcm.data import IN_MEMORY
from lcm.errors import plural

RECORDED = (
    "finished",
    "failed",
)  # the states that enter results; running and stopped runs will change
# The columns of runs.csv with their pandas dtypes. Accuracies in percent, of the last epoch unless named `best`, which is chosen
# on the test set and never used as a result; `seconds` of training and evaluation. `data_verified`: the images were compared with
# the official ones; empty where a data set has no such key. Device, versions and commit are "A, then B" where a run was continued
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
# Columns only where a run has them. data_cache: what mini-ImageNet's training regions are cut from: "256" (pixels of the cached
# images' short side), "full size" or "files". own_attention, own_model: the digest of a module's source where it is the user's
# own; empty where it is the repository's, and where the record does not say.
OPTIONAL = dict.fromkeys(("data_cache", "own_attention", "own_model"), "str")
REQUIRED = (
    "run",
    "state",
    "data",
    "model",
    "attention",
    "seed",
    "schedule",
    "precision",
    "epochs",
    "config_hash",
)
LAST_EPOCH = ("train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
RESULT = (*LAST_EPOCH, "best_test_top1", "best_epoch")
NAMES = ("data", "model", "attention", "schedule", "precision")  # they enter file names
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
BEGUN = (
    "run.json",
    "metrics.jsonl",
    "checkpoint.pt",
)  # a run that has begun has at least one of them


class DamagedRecord(Exception):
    """A run, or its record, that cannot be trusted; the text says why."""


def _parse(text, kind, what):
    try:
        value = json.loads(
            text, parse_constant=lambda name: None
        )  # NaN and Infinity are not JSON: read as null
    except (ValueError, RecursionError) as error:
        raise DamagedRecord(f"{what} is not JSON ({error})") from None
    if not isinstance(value, kind):
        raise DamagedRecord(f"{what} is no JSON {'object' if kind is dict else 'array'}")
    return value


def _text(file):
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DamagedRecord(f"{file.name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"{file.name} cannot be read ({error})") from None


def _object(parent, key):
    """The JSON object `key` of run.json; {} where it is missing or null."""
    value = {} if parent.get(key) is None else parent[key]
    if not isinstance(value, dict):
        raise DamagedRecord(f"run.json: {key} must be a JSON object")
    return value


def _is_number(value):
    return type(value) in (int, float) and -1e300 < value < 1e300


def _fits(value, dtype):
    if dtype == "str":
        return isinstance(value, str) and value.isprintable()
    if dtype == "float64":
        return _is_number(value)
    return type(value) is bool if dtype == "boolean" else type(value) is int and 0 <= value < 2**63


def _parts(run):
    """The environments that a run was trained in: its own, and those in which it was continued."""
    continued = run.get("continued") or []
    if not isinstance(continued, list) or not all(isinstance(part, dict) for part in continued):
        raise DamagedRecord("run.json: continued must be a JSON array of objects")
    return [run, *continued]


def _in_turn(values):
    """One value, or "A, then B" where they differ; a value that is no text stays alone, for `check` to find."""
    values = [value for value in values if value is not None]
    other = [value for value in values if not isinstance(value, str)]
    return other[0] if other else ", then ".join(dict.fromkeys(values)) or None


def row(run):
    """A run.json as a row of runs.csv: {column: value}, None for what it does not say. Raises DamagedRecord."""
    result, data, parts = (
        _object(run, "result"),
        _object(_object(run, "config"), "data"),
        _parts(run),
    )
    facts = {key: run.get(key) for key in COLUMNS} | {key: result.get(key) for key in RESULT}
    facts |= {key: _in_turn([part.get(key) for part in parts]) for key in ("device", "commit")}
    facts |= {
        key: _in_turn([_object(part, "versions").get(key) for part in parts])
        for key in ("python", "torch", "lcm")
    }
    facts["dirty"] = next((part["dirty"] for part in parts if part.get("dirty")), run.get("dirty"))
    facts["deviations"] = json.dumps(
        _object(run, "deviations"), sort_keys=True, separators=(",", ":")
    )
    facts["data_verified"] = data.get("verify")
    if isinstance(
        facts["message"], str
    ):  # an exception's text can be anything; the record keeps it as it is
        facts["message"] = "".join(
            character if character.isprintable() else " " for character in facts["message"]
        )
    own = _object(run, "own_source")
    facts |= {"own_attention": own.get("attention"), "own_model": own.get("model")}
    facts["data_cache"] = None
    if "cache" in data and (data.get("image_size") or 0) > IN_MEMORY:
        facts["data_cache"] = (
            str(data.get("cache_size") or "full size") if data["cache"] else "files"
        )
    return facts


def check(run, epochs):
    """Raise DamagedRecord unless a finished or failed run and its epochs are complete and agree with each other."""
    facts, finished = row(run), run.get("state") == "finished"
    for key, dtype in (COLUMNS | OPTIONAL).items():
        needed = key in REQUIRED or (finished and key in RESULT)
        if needed if facts[key] is None else not _fits(facts[key], dtype):
            name = f"result.{key}" if key in RESULT else key
            raise DamagedRecord(
                f"run.json: {name} is {json.dumps(facts[key])[:80]}, not {dtype.lower().rstrip('64')}"
            )
    for key in NAMES:
        if not NAME.fullmatch(facts[key]):
            raise DamagedRecord(
                f"run.json: {key} is {json.dumps(facts[key])[:80]}, which is not a name"
            )
    if facts["state"] not in RECORDED or not re.fullmatch("[0-9a-f]{64}", facts["config_hash"]):
        raise DamagedRecord("run.json: state or config_hash is not what train.py writes")
    name = f"{facts['data']}/{facts['model']}/{facts['attention']}/seed{facts['seed']}-{facts['config_hash'][:8]}"
    if facts["run"] != name:
        raise DamagedRecord(
            f"run.json: the run is called {facts['run']}, but its own facts say {name}"
        )
    if type(run.get("interruptions", 0)) is not int:
        raise DamagedRecord("run.json: interruptions must be a whole number")
    for number, epoch in enumerate(epochs.get("epoch", []), 1):
        if epoch != number:
            raise DamagedRecord(f"metrics.jsonl: line {number} is epoch {json.dumps(epoch)[:80]}")
    if not all(
        value is None or _is_number(value) for values in epochs.values() for value in values
    ):
        raise DamagedRecord("metrics.jsonl: a value is not a number")
    if finished:
        _check_result(run, facts, epochs)


def _check_result(run, facts, epochs):
    """Raise DamagedRecord unless a finished run has all its epochs, and the last of them is its result."""
    for key in ("test_top1", "test_top5", "train_top1", "best_test_top1"):
        if not 0 <= facts[key] <= 100:
            raise DamagedRecord(f"run.json: result.{key} is {facts[key]}, not a percentage")
    count = len(epochs.get("epoch", []))
    if count != facts["epochs"] or run["result"].get("epoch") != count or not count:
        raise DamagedRecord(
            f"metrics.jsonl: {plural(count, 'epoch')} of {facts['epochs']}, though the run is finished"
        )
    for key in LAST_EPOCH:
        last = epochs.get(key, [None])[-1]
        if last != facts[key]:
            raise DamagedRecord(
                f"run.json says {key} {facts[key]}, the last line of metrics.jsonl {last}"
            )


def read_run(directory):
    """(run, epochs) of a run directory; no epochs where the run has not ended. Raises DamagedRecord."""
    directory = Path(directory)
    run, lines = _parse(_text(directory / "run.json"), dict, "run.json"), []
    if run.get("state") in ("running", "stopped"):
        return run, {}  # the last line of metrics.jsonl may be half written
    if (directory / "metrics.jsonl").exists() or run.get("state") == "finished":
        lines = _text(directory / "metrics.jsonl").splitlines()
    rows = [
        _parse(line, dict, f"metrics.jsonl: line {number}") for number, line in enumerate(lines, 1)
    ]
    epochs = {
        column: [values.get(column) for values in rows] for column in (rows[0] if rows else ())
    }
    check(run, epochs)
    return run, epochs


def find_runs(folder, files_of_runs=BEGUN):
    """Every directory below `folder` with at least one of the files of a run, sorted."""
    found = []
    for directory, folders, files in os.walk(folder):
        if set(files_of_runs) & set(files):
            found.append(Path(directory))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return sorted(found)


def record(run, epochs):
    """The text of a run's record; see the top of this file."""
    config = {
        key: value
        for key, value in (run.get("config") or {}).items()
        if key not in ("runs", "run_directory")
    }
    if isinstance(config.get("data"), dict):
        folders = ("root", "places", "cache_dir")
        config["data"] = {key: value for key, value in config["data"].items() if key not in folders}
    run = {key: value for key, value in run.items() if key != "host"} | {"config": config}
    head = json.dumps({"run": run, "columns": list(epochs)}, sort_keys=True, separators=(",", ":"))
    rows = zip(*epochs.values(), strict=True)
    return "\n".join([head, *(json.dumps(values, separators=(",", ":")) for values in rows)]) + "\n"


def record_name(run):
    """The file name of the record of the run that is called `run`."""
    return run.replace("/", "-") + ".jsonl"


def read_record(file):
    """(run, epochs) of a record, as `read_run` gives them. Raises DamagedRecord."""
    file = Path(file)
    first, *lines = _text(file).splitlines() or [""]
    head = _parse(first, dict, "line 1")
    run, columns = head.get("run"), head.get("columns")
    if (
        not isinstance(run, dict)
        or not isinstance(columns, list)
        or not all(isinstance(key, str) for key in columns)
    ):
        raise DamagedRecord("line 1 has not the form {run, columns}")
    rows = [_parse(line, list, f"epoch {number}") for number, line in enumerate(lines, 1)]
    for number, values in enumerate(rows, 1):
        if len(values) != len(columns):
            raise DamagedRecord(
                f"epoch {number} has {plural(len(values), 'value')}, not {len(columns)}"
            )
    epochs = {column: [values[index] for values in rows] for index, column in enumerate(columns)}
    check(run, epochs)
    if file.name != record_name(run["run"]):
        raise DamagedRecord(f"is the record of {run['run']}")
    return run, epochs


def read_records(folder):
    """([(run, epochs)], [what is damaged and why]) of a folder of records."""
    found, damaged = [], []
    for file in sorted(Path(folder).glob("*.jsonl")):
        try:
            found.append(read_record(file))
        except DamagedRecord as error:
            damaged.append(f"{file}: {error}")
    return found, damaged
