"""From run directories to results: one row a run in runs.csv, one compact record a run in metrics/.

A record, `metrics/<data>-<model>-<attention>-seed<k>-<hash8>.jsonl`, is a line `{"run": {...}, "columns": [...]}`, which
is the run's run.json without what belongs to a machine (host, paths), then one JSON array an epoch, values as the run wrote
them. Records hold every finished and every failed run (a seed that diverged is a result too); runs.csv follows from them
alone. This module imports neither torch nor numpy.
"""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import NamedTuple, get_type_hints

from lcm.errors import UserError
from lcm.reporting.files import write

RECORDED = ("finished", "failed")  # the states that enter results; running and stopped runs will change


class Run(NamedTuple):
    """One row of runs.csv. Accuracies in percent, of the last epoch unless named `best`; `seconds` of training and evaluation.

    `best_test_top1` is chosen on the test set: shown as what it is, never used as a result.
    """

    run: str
    state: str
    data: str
    model: str
    attention: str
    seed: int
    schedule: str
    precision: str
    compile: bool
    deviations: dict
    epochs: int
    params: int
    gfloat: float
    macs: int
    test_top1: float
    test_top5: float
    best_test_top1: float
    best_epoch: int
    train_loss: float
    train_top1: float
    test_loss: float
    seconds: float
    device: str
    python: str
    torch: str
    lcm: str
    commit: str
    dirty: bool
    config_hash: str
    data_fingerprint: str
    start: str
    end: str
    message: str


FIELDS = get_type_hints(Run)
IDENTITY = (
    "run",
    "state",
    "data",
    "model",
    "attention",
    "seed",
    "schedule",
    "precision",
    "deviations",
    "epochs",
    "config_hash",
)
RESULT = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5", "best_test_top1", "best_epoch")


class Damaged(Exception):
    """A run, or its record, that cannot be trusted; the text says why."""


def _object(text, what):
    try:
        value = json.loads(
            text, parse_constant=lambda name: None
        )  # NaN and Infinity are no JSON: not a number, so null
    except ValueError as error:
        raise Damaged(f"{what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{what} is not a JSON object")
    return value


def _rows(lines, kind, what):
    """Lines of JSON, each a `kind` (dict or list); parsed together, which takes half the time, and alone to name a fault."""
    try:
        rows = json.loads(f"[{','.join(lines)}]", parse_constant=lambda name: None)
        if len(rows) == len(lines) and all(isinstance(row, kind) for row in rows):
            return rows
    except ValueError:
        pass
    for number, line in enumerate(lines, 1):
        try:
            fits = isinstance(json.loads(line), kind)
        except ValueError as error:
            raise Damaged(f"{what}: line {number} is not JSON ({error})") from None
        if not fits:
            raise Damaged(f"{what}: line {number} is no JSON {'object' if kind is dict else 'array'}")
    raise Damaged(f"{what}: lines are broken apart")


def _is(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check(run, metrics):
    """Raise Damaged unless run.json (`run`) and the epochs (`metrics`, a list of dicts) are whole and agree."""
    for key in IDENTITY:
        if not _is(run.get(key), FIELDS[key]):
            raise Damaged(f"run.json: {key} is {json.dumps(run.get(key))}, not {FIELDS[key].__name__}")
    name = f"{run['data']}/{run['model']}/{run['attention']}/seed{run['seed']}-{run['config_hash'][:8]}"
    if run["run"] != name:
        raise Damaged(f"run.json: the run is called {run['run']}, but its own facts say {name}")
    for number, row in enumerate(metrics, 1):
        if row.get("epoch") != number:
            raise Damaged(f"metrics.jsonl: line {number} is epoch {json.dumps(row.get('epoch'))}")
    if run["state"] != "finished":
        return
    result = run.get("result")
    if not isinstance(result, dict):
        raise Damaged("run.json: finished, but without a result")
    for key in RESULT:
        if not _is(result.get(key), FIELDS.get(key, int)):
            raise Damaged(f"run.json: finished, but result.{key} is {json.dumps(result.get(key))}")
    for key in ("test_top1", "test_top5", "train_top1", "best_test_top1"):
        if not 0 <= result[key] <= 100:
            raise Damaged(f"run.json: result.{key} is {result[key]}, not a percentage")
    if len(metrics) != run["epochs"] or result["epoch"] != run["epochs"]:
        raise Damaged(f"metrics.jsonl: {len(metrics)} epochs of {run['epochs']}, though the run is finished")
    for key in ("train_loss", "train_top1", "test_loss", "test_top1", "test_top5"):
        if metrics[-1].get(key) != result[key]:
            raise Damaged(f"run.json says {key} {result[key]}, the last line of metrics.jsonl {metrics[-1].get(key)}")


def read_run(directory):
    """(run.json, epochs) of a run directory: a dict and a list of dicts. Raises Damaged."""
    directory = Path(directory)
    try:
        run = _object((directory / "run.json").read_text(encoding="utf-8"), "run.json")
        lines = []
        if (directory / "metrics.jsonl").exists() or run.get("state") == "finished":
            lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"cannot be read ({error})") from None
    if run.get("state") in ("running", "stopped"):
        return run, []  # its last line may be in the middle of being written
    metrics = _rows(lines, dict, "metrics.jsonl")
    check(run, metrics)
    return run, metrics


def find_runs(folder):
    """Every run directory below `folder`, sorted: those that hold a run.json or metrics.jsonl, or are named like one."""
    found = []
    for place, folders, files in os.walk(folder):
        if "run.json" in files or "metrics.jsonl" in files or Path(place).name.startswith("seed"):
            found.append(Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return sorted(found)


def without_machine(run):
    """run.json without the host and the folders of the machine that it ran on."""
    run = {key: value for key, value in run.items() if key != "host"}
    config = {key: value for key, value in run.get("config", {}).items() if key not in ("runs", "run_directory")}
    if isinstance(config.get("data"), dict):
        config["data"] = {
            key: value for key, value in config["data"].items() if key not in ("root", "places", "cache_dir")
        }
    return run | {"config": config}


def record(run, metrics):
    """The text of a run's record; see the top of this file."""
    columns = list(metrics[0]) if metrics else []
    head = json.dumps({"run": without_machine(run), "columns": columns}, sort_keys=True, separators=(",", ":"))
    rows = json.dumps([[row.get(column) for column in columns] for row in metrics], separators=(",", ":"))
    return "\n".join([head, *rows[1:-1].replace("],[", "]\n[").splitlines()]) + "\n"  # the values are numbers


def record_name(run):
    """The file name of a run's record."""
    return run["run"].replace("/", "-") + ".jsonl"


def read_record(file):
    """(run, epochs) of a record, as `read_run` gives them. Raises Damaged."""
    try:
        first, *lines = Path(file).read_text(encoding="utf-8").splitlines()
        head = _object(first, "line 1")
        run, columns = head["run"], head["columns"]
        metrics = [dict(zip(columns, values, strict=True)) for values in _rows(lines, list, "the record")]
        check(run, metrics)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"cannot be read ({type(error).__name__}: {error})") from None
    if Path(file).name != record_name(run):
        raise Damaged(f"is the record of {run['run']}")
    return run, metrics


def record_metrics(text, column):
    """One column of a record's text, a value an epoch."""
    head, *lines = text.splitlines()
    place = json.loads(head)["columns"].index(column)
    return [values[place] for values in _rows(lines, list, "the record")]


def row(run):
    """A run.json as a row of runs.csv; None where it says nothing."""
    result, versions = run.get("result") or {}, run.get("versions") or {}
    facts = {**versions, **{key: result[key] for key in RESULT if key in result}, **run}
    return Run(**{key: facts.get(key) for key in FIELDS})


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, (bool, dict)):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return str(value)  # a float as the shortest text that reads back as the same number


def runs_csv(rows):
    """The text of runs.csv: sorted by data, model, attention, schedule, seed and name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for run in sorted(rows, key=lambda r: (r.data, r.model, r.attention, r.schedule, r.seed, r.run)):
        writer.writerow(map(_cell, run))
    return out.getvalue()


def read_runs(file):
    """runs.csv as a list of Run; an empty list where there is no such file. Raises UserError where it is damaged."""
    read = {str: str, int: int, float: float, bool: json.loads, dict: json.loads}
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return [
                Run(**{key: read[kind](line[key]) if line[key] else None for key, kind in FIELDS.items()})
                for line in csv.DictReader(stream)
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{file} is damaged ({error}): make it anew with python scripts/collect.py --from") from error


class Summary(NamedTuple):
    """What a collection found. The lists hold run names or files, each with its reason where there is one."""

    rows: list
    new: list
    replaced: list
    unfinished: list
    damaged: list

    def __str__(self):
        failed = [run for run in self.rows if run.state == "failed"]
        lines = [
            f"{len(self.rows)} runs: {len(self.rows) - len(failed)} finished, {len(failed)} failed; "
            f"{len(self.new)} new, {len(self.replaced)} replaced"
        ]
        for title, entries in (
            ("failed", [f"{run.run}: {run.message or 'no message'}" for run in failed]),
            ("replaced (the record before it is in git)", self.replaced),
            ("not finished, left out", self.unfinished),
            ("DAMAGED, left out", self.damaged),
        ):
            if entries:
                lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


def read_records(folder):
    """({file name: (run.json, text)}, damaged) of a folder of records."""
    records, damaged = {}, []
    for file in sorted(Path(folder).glob("*.jsonl")):
        try:
            records[file.name] = read_record(file)[0], file.read_text(encoding="utf-8")
        except Damaged as fault:
            damaged.append(f"{file}: {fault}")
    return records, damaged


def collect(runs, results):
    """Read the run directories below `runs` into `results`; returns a Summary.

    Records that are in `results` already stay. The same run found again replaces its record, except that a failed one never
    replaces a finished one. Damaged and unfinished runs are left out and named.
    """
    runs, results = Path(runs), Path(results)
    if not runs.is_dir():
        raise UserError(
            f"no folder {runs}: train something first (python train.py), or name the folder that holds the runs"
        )
    records, damaged = read_records(results / "metrics")
    new, replaced, unfinished, seen = [], [], [], {}
    for directory in find_runs(runs):
        try:
            run, metrics = read_run(directory)
        except Damaged as fault:
            damaged.append(f"{directory}: {fault}")
            continue
        if run["state"] not in RECORDED:
            unfinished.append(f"{directory}: {run['state']}")
            continue
        name, text = record_name(run), record(run, metrics)
        if name in seen:
            damaged.append(f"{directory}: a second copy of {seen[name]}")
            continue
        seen[name] = directory
        before, text_before = records.get(name, (None, None))
        if text == text_before or (before and before["state"] == "finished" and run["state"] == "failed"):
            continue
        if before is None:
            new.append(run["run"])
        else:
            replaced.append(f"{run['run']}: {_outcome(before)} before, {_outcome(run)} now")
        records[name] = run, text
        write(results / "metrics" / name, text)
    rows = [row(run) for run, _ in records.values()]
    write(results / "runs.csv", runs_csv(rows))
    return Summary(rows, new, replaced, unfinished, damaged)


def _outcome(run):
    return f"{run['result']['test_top1']} %" if run["state"] == "finished" else run["state"]


def rebuild(metrics, results):
    """Write `results`/runs.csv from a folder of records alone; returns a Summary."""
    if not Path(metrics).is_dir():
        raise UserError(f"no folder {metrics}: name the folder of records, usually results/metrics")
    records, damaged = read_records(metrics)
    rows = [row(run) for run, _ in records.values()]
    write(Path(results) / "runs.csv", runs_csv(rows))
    return Summary(rows, [], [], [], damaged)
