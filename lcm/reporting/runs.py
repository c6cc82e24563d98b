"""The DataFrame of runs, a row a run, from run directories to results/runs.csv."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lcm.errors import UserError, plural
from lcm.files import write
from lcm.reporting import records
from lcm.reporting.records import COLUMNS, OPTIONAL, DamagedRecord

DTYPES = COLUMNS | OPTIONAL
SWITCHES = [key for key, dtype in COLUMNS.items() if dtype == "boolean"]
ORDER = ["data", "model", "attention", "schedule", "seed", "run"]


def frame(rows):
    """The DataFrame of runs from rows as `records.row` returns them; missing text is ""."""
    runs = pd.DataFrame(rows, columns=list(DTYPES), dtype=object)
    text = [key for key, dtype in DTYPES.items() if dtype == "str"]
    runs[text] = runs[text].fillna("")
    return runs.astype(DTYPES).sort_values(ORDER, ignore_index=True)


def runs_csv(runs):
    """The text of runs.csv; numbers as the shortest text that reads back as the same number, no
    OPTIONAL column that is empty."""
    runs = runs.drop(columns=[key for key in OPTIONAL if not runs[key].any()])
    switches = {key: runs[key].map({True: "true", False: "false"}) for key in SWITCHES}
    return runs.assign(**switches).to_csv(index=False, lineterminator="\n")


def read_runs(file):
    """The DataFrame of runs.csv; without rows where there is no such file. UserError: damaged."""
    if not Path(file).exists():
        return frame([])
    read = {"float64": float, "Int64": int, "boolean": {"true": True, "false": False}.__getitem__}
    try:
        runs = pd.read_csv(file, dtype=str, keep_default_na=False)
        if list(runs) != [*COLUMNS, *(key for key in OPTIONAL if key in runs)]:
            raise ValueError("other columns")
        for key, dtype in COLUMNS.items():
            if dtype != "str":  # Python's own reading of a number, which is exact
                cells = [read[dtype](cell) if cell else None for cell in runs[key]]
                runs[key] = pd.array(cells, dtype=dtype)
        return runs.assign(**{key: runs.get(key, "") for key in OPTIONAL})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({error}): regenerate it with python scripts/collect.py --from"
        ) from error


class Summary(NamedTuple):
    """What a collection found: the DataFrame, and runs or files, each with its reason."""

    runs: pd.DataFrame
    damaged: list
    new: tuple = ()
    replaced: tuple = ()
    unfinished: tuple = ()

    def __str__(self):
        failed = self.runs[self.runs["state"] == "failed"]
        lines = [
            f"{plural(len(self.runs), 'run')}: {len(self.runs) - len(failed)} finished, "
            f"{len(failed)} failed; {len(self.new)} new, {len(self.replaced)} replaced"
        ]
        reasons = (f"{run.run}: {run.message or 'no message'}" for run in failed.itertuples())
        for title, entries in {
            "failed": reasons,
            "replaced (the earlier record is in git)": self.replaced,
            "not finished, left out": self.unfinished,
            "DAMAGED, left out": self.damaged,
        }.items():
            if entries := [f"  {entry}" for entry in entries]:
                lines += [f"{title}:", *entries]
        return "\n".join(lines)


def collect(runs, results):
    """Write a record of each finished or failed run below `runs`, then runs.csv from all records.

    Returns a Summary. Records of other runs stay. A run found again replaces its record, but a
    failed one never replaces a finished one. Damaged and unfinished runs are left out and named.
    Raises UserError where the folder is missing.
    """
    runs, metrics = Path(runs), Path(results) / "metrics"
    if not runs.is_dir():
        raise UserError(
            f"no folder {runs}: train something first (python train.py), or name the folder that "
            "holds the runs"
        )
    new, replaced = [], []
    recorded, unfinished, damaged = records.read_runs(runs)
    for run, epochs in recorded:
        file, text = metrics / records.record_name(run["run"]), records.record(run, epochs)
        if not file.exists():
            new.append(run["run"])
        elif file.read_bytes() != text.encode():
            before = _recorded(file)
            if (before["state"], run["state"]) == ("finished", "failed"):
                continue
            replaced.append(f"{run['run']}: {_outcome(before)} before, {_outcome(run)} now")
        write(file, text)
    found = _write_csv(metrics, results)
    return Summary(found.runs, damaged + found.damaged, new, replaced, unfinished)


def _recorded(file):
    try:
        return records.read_record(file)[0]
    except DamagedRecord:
        return {"state": "damaged"}


def _outcome(run):
    return f"{run['result']['test_top1']} %" if run["state"] == "finished" else run["state"]


def rebuild(metrics, results):
    """Write `results`/runs.csv from a folder of records alone; returns a Summary. UserError."""
    if not Path(metrics).is_dir():
        raise UserError(f"no folder {metrics}: name the folder of records, usually results/metrics")
    return _write_csv(metrics, results)


def _write_csv(metrics, results):
    found, damaged = records.read_records(metrics)
    runs = frame([records.row(run) for run, _ in found])
    write(Path(results) / "runs.csv", runs_csv(runs))
    return Summary(runs, damaged)
