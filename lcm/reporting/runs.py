"""The DataFrame of runs, one row a run, from run directories to results/runs.csv. Everything else in reporting starts from it."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lcm.errors import UserError
from lcm.files import write
from lcm.reporting.records import (
    COLUMNS,
    OPTIONAL,
    RECORDED,
    Damaged,
    check,
    find_runs,
    read_record,
    read_records,
    read_run,
    record,
    record_name,
)

ORDER = ["data", "model", "attention", "schedule", "seed", "run"]


def frame(rows):
    """The DataFrame of runs from rows as `check` returns them; missing text is ""."""
    dtypes = COLUMNS | OPTIONAL
    runs = pd.DataFrame(rows, columns=list(dtypes), dtype=object)
    text = [key for key, dtype in dtypes.items() if dtype == "str"]
    runs[text] = runs[text].fillna("")
    return runs.astype(dtypes).sort_values(ORDER, ignore_index=True)


def runs_csv(runs):
    """The text of runs.csv; numbers as the shortest text that reads back as the same number, no OPTIONAL column that is empty."""
    runs = runs.drop(columns=[key for key in OPTIONAL if not (runs[key] != "").any()])
    switches = {key: runs[key].map({True: "true", False: "false"}) for key in runs if COLUMNS.get(key) == "boolean"}
    return runs.assign(**switches).to_csv(index=False, lineterminator="\n")


def read_runs(file):
    """The DataFrame of runs.csv; without rows where there is no such file. Raises UserError where it is damaged."""
    read = {"float64": float, "Int64": int, "boolean": {"true": True, "false": False}.__getitem__}
    try:
        runs = pd.read_csv(file, dtype=str, keep_default_na=False)
        if list(runs) not in (list(COLUMNS), list(COLUMNS | OPTIONAL)):
            raise ValueError("other columns")
        for key, dtype in (COLUMNS | OPTIONAL).items():
            if dtype != "str":  # Python's own reading of a number, which is exact
                runs[key] = pd.array([read[dtype](cell) if cell else None for cell in runs[key]], dtype=dtype)
        return runs.assign(**{key: runs.get(key, "") for key in OPTIONAL})
    except FileNotFoundError:
        return frame([])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}): regenerate it with python scripts/collect.py --from") from error


class Summary(NamedTuple):
    """What a collection found: the DataFrame, and run names or files, each with its reason where there is one."""

    runs: pd.DataFrame
    new: list
    replaced: list
    unfinished: list
    damaged: list

    def __str__(self):
        failed = self.runs[self.runs["state"] == "failed"]
        lines = [
            f"{len(self.runs)} runs: {len(self.runs) - len(failed)} finished, {len(failed)} failed; "
            f"{len(self.new)} new, {len(self.replaced)} replaced"
        ]
        for title, entries in (
            ("failed", [f"{run.run}: {run.message or 'no message'}" for run in failed.itertuples()]),
            ("replaced (the record before it is in git)", self.replaced),
            ("not finished, left out", self.unfinished),
            ("DAMAGED, left out", self.damaged),
        ):
            if entries:
                lines += [f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join(lines)


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
        except Damaged as error:
            damaged.append(f"{directory}: {error}")
            continue
        if run["state"] not in RECORDED:
            unfinished.append(f"{directory}: {run['state']}")
            continue
        name = record_name(run["run"])
        if name in seen:
            damaged.append(f"{directory}: a second copy of {seen[name]}")
            continue
        seen[name], text, before = directory, record(run, epochs), None
        if not (results / "metrics" / name).exists():
            new.append(run["run"])
        elif (results / "metrics" / name).read_bytes() != text.encode():
            try:
                before, epochs_before = read_record(results / "metrics" / name)
            except Damaged as error:
                damaged.append(f"{results / 'metrics' / name}: {error}")
            if before and before["run"] != run["run"]:
                damaged.append(f"{directory}: its record would replace that of {before['run']}")
            if before and (before["run"] != run["run"] or (before["state"], run["state"]) == RECORDED):
                rows.append(check(before, epochs_before))
                continue
            replaced.append(f"{run['run']}: {_outcome(before)} before, {_outcome(run)} now")
        rows.append(check(run, epochs))
        write(results / "metrics" / name, text)
    others, damaged_records = read_records(results / "metrics", skip=seen)
    rows += [check(*other) for other in others.values()]
    table = frame(rows)
    write(results / "runs.csv", runs_csv(table))
    return Summary(table, new, replaced, unfinished, damaged + damaged_records)


def _outcome(run):
    if run is None:
        return "damaged"
    return f"{run['result']['test_top1']} %" if run["state"] == "finished" else run["state"]


def rebuild(metrics, results):
    """Write `results`/runs.csv from a folder of records alone; returns a Summary."""
    if not Path(metrics).is_dir():
        raise UserError(f"no folder {metrics}: name the folder of records, usually results/metrics")
    records, damaged = read_records(metrics)
    runs = frame([check(*one) for one in records.values()])
    write(Path(results) / "runs.csv", runs_csv(runs))
    return Summary(runs, [], [], [], damaged)
