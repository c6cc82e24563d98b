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
import re
from pathlib import Path
from typing import NamedTuple, get_type_hints

from lcm.errors import UserError
from lcm.files import write

RECORDED = ("finished", "failed")  # the states that enter results; running and stopped runs will change


class Run(NamedTuple):
    """One row of runs.csv. Accuracies in percent, of the last epoch unless named `best`; `seconds` of training and evaluation.
    `data_verified` is the config's data.verify: the images were compared with the official ones; None where data has no such key.

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
    data_verified: bool
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


_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"


class Epochs:
    """The epochs of a run as they stand in its record: `columns`, and in `rows` each epoch's values as a JSON array in text.

    Lines of numbers, as training writes them, are cut apart as text: to parse and print the numbers of 1,000 runs would take most
    of a collection's time. `numbers` says that all values are such.
    """

    def __init__(self, columns, rows, numbers):
        self.columns, self.rows, self.numbers = columns, rows, numbers

    @classmethod
    def of_objects(cls, lines, what):
        """From the lines of metrics.jsonl, each a JSON object; its columns are the first one's. Raises Damaged."""
        columns = list(_rows(lines[:1], dict, what)[0]) if lines else []
        pattern = re.compile(r"\{" + ", ".join(f"{re.escape(json.dumps(c))}: ({_NUMBER})" for c in columns) + r"\}")
        found = [pattern.fullmatch(line) for line in lines]
        if all(found):
            return cls(columns, [f"[{','.join(match.groups())}]" for match in found], True)
        values = [[row.get(column) for column in columns] for row in _rows(lines, dict, what)]
        return cls(columns, [json.dumps(row, separators=(",", ":")) for row in values], False)

    @classmethod
    def of_arrays(cls, columns, lines, what):
        """From the lines of a record, each a JSON array of `columns`. Raises Damaged."""
        pattern = re.compile(r"\[" + ",".join([_NUMBER] * len(columns)) + r"\]")
        if all(map(pattern.fullmatch, lines)):
            return cls(columns, lines, True)
        for number, row in enumerate(_rows(lines, list, what), 1):
            if len(row) != len(columns):
                raise Damaged(f"{what}: epoch {number} has {len(row)} values, not {len(columns)}")
        return cls(columns, lines, False)

    def __len__(self):
        return len(self.rows)

    def __eq__(self, other):
        return (self.columns, self.rows) == (other.columns, other.rows)

    def column(self, name):
        """A column's values, one an epoch; None where there are none."""
        if name not in self.columns:
            return [None] * len(self)
        place = self.columns.index(name)
        if self.numbers:
            return json.loads(f"[{','.join(row[1:-1].split(',')[place] for row in self.rows)}]")
        return [values[place] for values in _rows(self.rows, list, "the record")]

    def last(self):
        """The last epoch as a dict."""
        return dict(zip(self.columns, _rows(self.rows[-1:], list, "the record")[0], strict=True)) if self.rows else {}


def _is(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check(run, epochs):
    """Raise Damaged unless run.json (`run`) and the epochs are whole and agree."""
    for key in IDENTITY:
        if not _is(run.get(key), FIELDS[key]):
            raise Damaged(f"run.json: {key} is {json.dumps(run.get(key))}, not {FIELDS[key].__name__}")
    for key in ("data", "model", "attention", "schedule", "precision"):  # they become names of files
        if not re.fullmatch(r"[\w-][\w.-]*", run[key], re.ASCII):
            raise Damaged(f"run.json: {key} is {json.dumps(run[key])}, not a plain name")
    if not re.fullmatch(r"[0-9a-f]{8,64}", run["config_hash"]):
        raise Damaged(f"run.json: config_hash is {json.dumps(run['config_hash'])}, not a hash")
    facts = row(run)._asdict()
    if wrong := [key for key, value in facts.items() if value is not None and not _is(value, FIELDS[key])]:
        raise Damaged(f"run.json: {wrong[0]} is {json.dumps(facts[wrong[0]])}, not {FIELDS[wrong[0]].__name__}")
    name = f"{run['data']}/{run['model']}/{run['attention']}/seed{run['seed']}-{run['config_hash'][:8]}"
    if run["run"] != name:
        raise Damaged(f"run.json: the run is called {run['run']}, but its own facts say {name}")
    for number, epoch in enumerate(epochs.column("epoch"), 1):
        if epoch != number:
            raise Damaged(f"metrics.jsonl: line {number} is epoch {json.dumps(epoch)}")
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
    if len(epochs) != run["epochs"] or result["epoch"] != run["epochs"]:
        raise Damaged(f"metrics.jsonl: {len(epochs)} epochs of {run['epochs']}, though the run is finished")
    last = epochs.last()
    for key in ("train_loss", "train_top1", "test_loss", "test_top1", "test_top5"):
        if last.get(key) != result[key]:
            raise Damaged(f"run.json says {key} {result[key]}, the last line of metrics.jsonl {last.get(key)}")


def read_run(directory):
    """(run.json as a dict, Epochs) of a run directory. Raises Damaged."""
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
        return run, Epochs([], [], True)  # its last line may be in the middle of being written
    epochs = Epochs.of_objects(lines, "metrics.jsonl")
    check(run, epochs)
    return run, epochs


BEGUN = ("run.json", "metrics.jsonl", "checkpoint.pt")  # one of them is in the directory of every run that has begun


def find_runs(folder, files_of_runs=BEGUN):
    """Every run directory below `folder`, sorted: those that hold one of some files."""
    found = []
    for place, folders, files in os.walk(folder):
        if set(files_of_runs) & set(files):
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


def record(run, epochs):
    """The text of a run's record; see the top of this file."""
    head = {"run": without_machine(run), "columns": epochs.columns}
    return "\n".join([json.dumps(head, sort_keys=True, separators=(",", ":")), *epochs.rows]) + "\n"


def record_name(run):
    """The file name of a run's record."""
    return run["run"].replace("/", "-") + ".jsonl"


def read_record(file):
    """(run, Epochs) of a record, as `read_run` gives them. Raises Damaged."""
    try:
        first, *lines = Path(file).read_text(encoding="utf-8").splitlines()
        head = _object(first, "line 1")
        run, epochs = head["run"], Epochs.of_arrays(head["columns"], lines, "the record")
        check(run, epochs)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"cannot be read ({type(error).__name__}: {error})") from None
    if Path(file).name != record_name(run):
        raise Damaged(f"is the record of {run['run']}")
    return run, epochs


def row(run):
    """A run.json as a row of runs.csv; None where it says nothing."""
    result, versions = run.get("result") or {}, run.get("versions") or {}
    data = (run.get("config") or {}).get("data")
    verified = data.get("verify") if isinstance(data, dict) else None
    facts = {**versions, **{key: result[key] for key in RESULT if key in result}, "data_verified": verified, **run}
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


def read_records(folder, skip=()):
    """({file name: (run, Epochs)}, damaged) of a folder of records but those that `skip` names."""
    records, damaged = {}, []
    for file in sorted(Path(folder).glob("*.jsonl")):
        if file.name not in skip:
            try:
                records[file.name] = read_record(file)
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
    rows, damaged, new, replaced, unfinished, seen = [], [], [], [], [], {}
    for directory in find_runs(runs):
        try:
            run, epochs = read_run(directory)
        except Damaged as fault:
            damaged.append(f"{directory}: {fault}")
            continue
        if run["state"] not in RECORDED:
            unfinished.append(f"{directory}: {run['state']}")
            continue
        name, text = record_name(run), record(run, epochs)
        if name in seen:
            damaged.append(f"{directory}: a second copy of {seen[name]}")
            continue
        seen[name], file = directory, results / "metrics" / name
        if not file.is_file():
            new.append(run["run"])
        elif file.read_bytes() != text.encode():
            try:
                before, _ = read_record(file)
            except Damaged as fault:
                before = None
                damaged.append(f"{file}: {fault}")
            if before and before["state"] == "finished" and run["state"] == "failed":
                rows.append(row(before))
                continue
            replaced.append(f"{run['run']}: {_outcome(before)} before, {_outcome(run)} now")
        rows.append(row(run))
        write(file, text)
    others, damaged_records = read_records(results / "metrics", skip=seen)
    rows += [row(run) for run, _ in others.values()]
    damaged += damaged_records
    write(results / "runs.csv", runs_csv(rows))
    return Summary(rows, new, replaced, unfinished, damaged)


def _outcome(run):
    if run is None:
        return "damaged"
    return f"{run['result']['test_top1']} %" if run["state"] == "finished" else run["state"]


def rebuild(metrics, results):
    """Write `results`/runs.csv from a folder of records alone; returns a Summary."""
    if not Path(metrics).is_dir():
        raise UserError(f"no folder {metrics}: name the folder of records, usually results/metrics")
    records, damaged = read_records(metrics)
    rows = [row(run) for run, _ in records.values()]
    write(Path(results) / "runs.csv", runs_csv(rows))
    return Summary(rows, [], [], [], damaged)
