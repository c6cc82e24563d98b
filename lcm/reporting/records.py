"""Run directories and their records: found, read, checked, written. Without pandas: status.py and repeat.py read runs too.

A record, `metrics/<data>-<model>-<attention>-seed<k>-<hash8>.jsonl`, is a line `{"run": {...}, "columns": [...]}`, which
is the run's run.json without what belongs to a machine (host, folders), then one JSON array an epoch. Run directories and records
may come from anybody: nothing of them is used before `check` has passed.
"""

import json
import os
import re
from pathlib import Path

RECORDED = ("finished", "failed")  # the states that enter results; running and stopped runs will change
# The columns of runs.csv with their pandas dtypes. Accuracies in percent, of the last epoch unless named `best`, which is chosen
# on the test set and never used as a result; `seconds` of training and evaluation. `data_verified`: the images were compared with
# the official ones; empty where a data set has no such key.
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
# What mini-ImageNet's training regions are cut from: "256" (pixels of the cached images' short side), "full size" or "files".
OPTIONAL = {"data_cache": "str"}  # a column only where a run has it
REQUIRED = ("run", "state", "data", "model", "attention", "seed", "schedule", "precision", "epochs", "config_hash")
RESULT = ("train_loss", "train_top1", "test_loss", "test_top1", "test_top5", "best_test_top1", "best_epoch")
LAST_EPOCH = RESULT[:5]
NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
)  # of data sets, networks, modules, schedules: they enter file names
BEGUN = ("run.json", "metrics.jsonl", "checkpoint.pt")  # one of them is in the directory of every run that has begun


class Damaged(Exception):
    """A run, or its record, that cannot be trusted; the text says why."""


class Epochs:
    """The epochs of a run: `columns`, and in `rows` the values of each epoch."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows

    def __len__(self):
        return len(self.rows)

    def __eq__(self, other):
        return (self.columns, self.rows) == (other.columns, other.rows)

    def column(self, name):
        """A column's values, one for each epoch; None where it is missing."""
        if name not in self.columns:
            return [None] * len(self)
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def _parse(text, kind, what):
    try:
        value = json.loads(text, parse_constant=lambda name: None)  # NaN and Infinity are no JSON: no number, so null
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what} is not JSON ({error})") from None
    if not isinstance(value, kind):
        raise Damaged(f"{what} is no JSON {'object' if kind is dict else 'array'}")
    return value


def _text(file):
    if file.exists() and not file.is_file():  # a pipe or a device would never end
        raise Damaged(f"{file.name} is not a regular file")
    return file.read_text(encoding="utf-8")


def _is_number(value):
    return type(value) in (int, float) and -1e300 < value < 1e300


def _fits(value, dtype):
    if dtype == "str":
        return isinstance(value, str) and value.isprintable()
    if dtype == "float64":
        return _is_number(value)
    return type(value) is bool if dtype == "boolean" else type(value) is int and 0 <= value < 2**63


def row(run):
    """A run.json as a row of runs.csv: {column: value}, None where it says nothing. Raises Damaged."""
    parts = [run.get(key) for key in ("result", "versions", "config", "deviations")]
    parts = [{} if part is None else part for part in parts]
    data = parts[2].get("data") if isinstance(parts[2], dict) else None
    data = {} if data is None else data
    if not all(isinstance(part, dict) for part in (*parts, data)):
        raise Damaged("run.json: result, versions, config, its data and deviations must be JSON objects")
    if not isinstance(run.get("continued") or [], list):
        raise Damaged("run.json: continued must be a JSON array")
    result, versions, _, deviations = parts
    facts = {key: run.get(key) for key in COLUMNS} | {key: result.get(key) for key in RESULT}
    facts |= {key: versions.get(key) for key in ("python", "torch", "lcm")}
    facts["deviations"] = json.dumps(deviations, sort_keys=True, separators=(",", ":"))
    facts["data_verified"] = data.get("verify")
    if isinstance(facts["message"], str):  # of an exception, so anything; the record keeps it as it is
        facts["message"] = "".join(character if character.isprintable() else " " for character in facts["message"])
    facts["data_cache"] = None
    if "cache" in data:
        facts["data_cache"] = str(data.get("cache_size") or "full size") if data["cache"] else "files"
    return facts


def check(run, epochs):
    """The row of runs.csv for a run.json and its `Epochs`. Raises Damaged unless both are whole and agree."""
    facts, finished = row(run), run.get("state") == "finished"
    for key, dtype in (COLUMNS | OPTIONAL).items():
        needed = key in REQUIRED or (finished and key in RESULT)
        if needed if facts[key] is None else not _fits(facts[key], dtype):
            name = f"result.{key}" if key in RESULT else key
            raise Damaged(f"run.json: {name} is {json.dumps(facts[key])[:80]}, not {dtype.lower().rstrip('64')}")
    for key in ("data", "model", "attention", "schedule", "precision"):
        if not NAME.fullmatch(facts[key]):
            raise Damaged(f"run.json: {key} is {json.dumps(facts[key])[:80]}, which is not a name")
    if facts["state"] not in RECORDED or not re.fullmatch("[0-9a-f]{64}", facts["config_hash"]):
        raise Damaged("run.json: state or config_hash is not what train.py writes")
    name = f"{facts['data']}/{facts['model']}/{facts['attention']}/seed{facts['seed']}-{facts['config_hash'][:8]}"
    if facts["run"] != name:
        raise Damaged(f"run.json: the run is called {facts['run']}, but its own facts say {name}")
    for number, epoch in enumerate(epochs.column("epoch"), 1):
        if epoch != number:
            raise Damaged(f"metrics.jsonl: line {number} is epoch {json.dumps(epoch)[:80]}")
    if not all(value is None or _is_number(value) for values in epochs.rows for value in values):
        raise Damaged("metrics.jsonl: a value is not a number")
    if finished:
        _check_result(run, facts, epochs)
    return facts


def _check_result(run, facts, epochs):
    """Raise Damaged unless a finished run has all its epochs, and the last of them is its result."""
    for key in ("test_top1", "test_top5", "train_top1", "best_test_top1"):
        if not 0 <= facts[key] <= 100:
            raise Damaged(f"run.json: result.{key} is {facts[key]}, not a percentage")
    if len(epochs) != facts["epochs"] or run["result"].get("epoch") != facts["epochs"] or not len(epochs):
        raise Damaged(f"metrics.jsonl: {len(epochs)} epochs of {facts['epochs']}, though the run is finished")
    for key in LAST_EPOCH:
        if epochs.column(key)[-1] != facts[key]:
            raise Damaged(f"run.json says {key} {facts[key]}, the last line of metrics.jsonl {epochs.column(key)[-1]}")


def read_run(directory):
    """(run.json as a dict, Epochs) of a run directory. Raises Damaged."""
    directory = Path(directory)
    try:
        run, lines = _parse(_text(directory / "run.json"), dict, "run.json"), []
        if run.get("state") in ("running", "stopped"):
            return run, Epochs([], [])  # its last line may be in the middle of being written
        if (directory / "metrics.jsonl").exists() or run.get("state") == "finished":
            lines = _text(directory / "metrics.jsonl").splitlines()
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"cannot be read ({error})") from None
    rows = [_parse(line, dict, f"metrics.jsonl: line {number}") for number, line in enumerate(lines, 1)]
    columns = list(rows[0]) if rows else []
    epochs = Epochs(columns, [[values.get(column) for column in columns] for values in rows])
    check(run, epochs)
    return run, epochs


def find_runs(folder, files_of_runs=BEGUN):
    """Every run directory below `folder`, sorted: those that hold one of some files."""
    found = []
    for place, folders, files in os.walk(folder):
        if set(files_of_runs) & set(files):
            found.append(Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return sorted(found)


def record(run, epochs):
    """The text of a run's record; see the top of this file."""
    config = {key: value for key, value in (run.get("config") or {}).items() if key not in ("runs", "run_directory")}
    if isinstance(config.get("data"), dict):
        folders = ("root", "places", "cache_dir")
        config["data"] = {key: value for key, value in config["data"].items() if key not in folders}
    run = {key: value for key, value in run.items() if key != "host"} | {"config": config}
    head = json.dumps({"run": run, "columns": epochs.columns}, sort_keys=True, separators=(",", ":"))
    return "\n".join([head, *(json.dumps(values, separators=(",", ":")) for values in epochs.rows)]) + "\n"


def record_name(run):
    """The file name of the record of the run that is called `run`."""
    return run.replace("/", "-") + ".jsonl"


def read_record(file):
    """(run, Epochs) of a record, as `read_run` gives them. Raises Damaged."""
    file = Path(file)
    try:
        first, *lines = _text(file).splitlines()
    except (OSError, ValueError) as error:
        raise Damaged(f"cannot be read ({type(error).__name__}: {error})") from None
    head = _parse(first, dict, "line 1")
    run, columns = head.get("run"), head.get("columns")
    if not isinstance(run, dict) or not isinstance(columns, list) or not all(isinstance(key, str) for key in columns):
        raise Damaged("line 1 has not the form {run, columns}")
    rows = [_parse(line, list, f"epoch {number}") for number, line in enumerate(lines, 1)]
    for number, values in enumerate(rows, 1):
        if len(values) != len(columns):
            raise Damaged(f"epoch {number} has {len(values)} values, not {len(columns)}")
    check(run, Epochs(columns, rows))
    if file.name != record_name(run["run"]):
        raise Damaged(f"is the record of {run['run']}")
    return run, Epochs(columns, rows)


def read_records(folder, skip=()):
    """({file name: (run, Epochs)}, [what is damaged]) of a folder of records but those that `skip` names."""
    records, damaged = {}, []
    for file in sorted(Path(folder).glob("*.jsonl")):
        if file.name not in skip:
            try:
                records[file.name] = read_record(file)
            except Damaged as error:
                damaged.append(f"{file}: {error}")
    return records, damaged
