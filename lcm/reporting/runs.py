"""The DataFrame of runs, a row a run, from run directories to results/runs.csv."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lcm.config.identity import deviations
from lcm.errors import UserError, plural
from lcm.files import write
from lcm.reporting import records
from lcm.reporting.records import COLUMNS, OPTIONAL, DamagedRecord

DTYPES = COLUMNS | OPTIONAL
SWITCHES = [key for key, dtype in COLUMNS.items() if dtype == "boolean"]
ORDER = ["data", "model", "attention", "schedule", "seed", "run"]


def frame(rows):
    """The DataFrame of runs from rows as `records.row` returns them; missing text is ""."""
    # As objects until typed: pandas would make floats of whole numbers with a gap.
    runs = pd.DataFrame(rows, columns=list(DTYPES), dtype=object)
    text = [key for key, dtype in DTYPES.items() if dtype == "str"]
    runs[text] = runs[text].fillna("")
    return runs.astype(DTYPES).sort_values(ORDER, ignore_index=True)


def read_runs(file):
    """The DataFrame of runs.csv; without rows where there is no such file. UserError: damaged."""
    if not Path(file).exists():
        return frame([])
    # An empty field is a gap among numbers and switches. Text has no gaps: a network may be
    # called null, which pandas would take for one.
    unknown = {key: [""] for key, dtype in COLUMNS.items() if dtype != "str"}
    # Python's own reading of a float is exact
    as_read = {key: "str" if dtype == "float64" else dtype for key, dtype in DTYPES.items()}
    try:
        text = Path(file).read_text(encoding="utf-8")
        # pandas fills up a last line that was cut: its lost fields would be gaps.
        if not text.endswith("\n"):
            raise ValueError("it is cut short")
        runs = pd.read_csv(
            io.StringIO(text), dtype=as_read, keep_default_na=False, na_values=unknown
        )
        return runs.assign(**{key: runs.get(key, "") for key in OPTIONAL})[[*DTYPES]].astype(DTYPES)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({error}): python scripts/collect.py makes it from the records"
        ) from error


class Summary(NamedTuple):
    """What a collection found: the DataFrame, and runs or files, each with its reason."""

    runs: pd.DataFrame
    damaged: list
    new: list
    kept: list
    replaced: list
    unfinished: list

    def __str__(self):
        failed = self.runs[self.runs["state"] == "failed"]
        lines = [
            f"{plural(len(self.runs), 'run')}: {len(self.runs) - len(failed)} finished, "
            f"{len(failed)} failed; {len(self.new)} new, {len(self.kept)} kept as recorded, "
            f"{len(self.replaced)} replaced"
        ]
        reasons = [f"{run.run}: {run.message or 'no message'}" for run in failed.itertuples()]
        for title, entries in {
            "failed": reasons,
            "kept as recorded (--replace takes the new run)": self.kept,
            "replaced (the earlier record is in git)": self.replaced,
            "not finished, left out": self.unfinished,
            "DAMAGED, left out": self.damaged,
        }.items():
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return "\n".join(lines)


def collect(runs, results, replace=False):
    """Write a record of each finished or failed run below `runs`, then runs.csv from all records.

    runs=None: from the records alone. Returns a Summary. The record of a finished run stays, also
    where the run was trained again with another result; `replace`: another finished one replaces
    it. Damaged and unfinished runs are left out and named. Raises UserError where the folder is
    missing.
    """
    if runs is not None and not Path(runs).is_dir():
        raise UserError(
            f"no folder {runs}: train something first (python train.py), or name the folder that "
            "holds the runs"
        )
    metrics, new, kept, replaced = Path(results) / "metrics", [], [], []
    found, unfinished, damaged = (
        records.read_run_directories(runs) if runs is not None else ([], [], [])
    )
    for run, epochs in found:
        file, text = metrics / records.record_name(run["run"]), records.record(run, epochs)
        # Equal bytes are neither new nor replaced: the same run was collected again.
        if not file.exists():
            new.append(run["run"])
        elif file.read_bytes() != text.encode():
            try:
                before, _ = records.read_record(file)
            except DamagedRecord:
                before = {"state": "damaged"}
            if before["state"] == "finished" and not (replace and run["state"] == "finished"):
                kept.append(f"{run['run']}: {_outcome(before)} recorded, {_outcome(run)} now")
                continue
            replaced.append(f"{run['run']}: {_outcome(before)} before, {_outcome(run)} now")
        write(file, text)
    recorded, damaged_records = records.read_records(metrics)
    table = frame([records.row(run | {"deviations": _deviations(run)}) for run, _ in recorded])
    # Numbers as the shortest text that reads back as the same number; no empty OPTIONAL column.
    switches = {key: table[key].map({True: "true", False: "false"}) for key in SWITCHES}
    shown = table.drop(columns=[key for key in OPTIONAL if not table[key].any()]).assign(**switches)
    write(Path(results) / "runs.csv", shown.to_csv(index=False, lineterminator="\n"))
    return Summary(table, damaged + damaged_records, new, kept, replaced, unfinished)


def _deviations(run):
    """A run's deviations from the files of its names, as they were when it began and as they are
    now: after a change to one of them, runs of the same names differ."""
    now = {}
    # The file may be elsewhere, or the record from another version of the program.
    with contextlib.suppress(UserError, LookupError, TypeError, AttributeError):
        now = deviations(run["config"])
    return run["deviations"] | now


def _outcome(run):
    return f"{run['result']['test_top1']:.2f} %" if run["state"] == "finished" else run["state"]
