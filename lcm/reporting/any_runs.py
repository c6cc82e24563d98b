"""Any runs that differ in attention and seed alone, compared seed by seed: a protocol of one's own."""

import json
from pathlib import Path

import pandas as pd
import yaml

from lcm.config.identity import NO_DEVIATION, identity, is_under
from lcm.config.options import GROUPS, flatten
from lcm.errors import UserError, listed, nearest
from lcm.reporting.paired import compare_groups
from lcm.reporting.figures import forest
from lcm.reporting.protocol import PAPER_SCHEDULE, Protocol, in_order, one_a_seed, title
from lcm.reporting.records import RECORDED, DamagedRecord, find_runs, read_records, read_run, row
from lcm.reporting.report import forest_rows
from lcm.reporting.runs import frame

FREE = (
    "attention",
    *(key for key in NO_DEVIATION if key != "precision"),
)  # what may differ between compared runs


def read_folders(folders):
    """([run.json of each finished or failed run], [what was left out and why]) of folders of runs or of records.

    Raises UserError where a folder is missing.
    """
    found, left_out = [], []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder}: name a folder of runs or of records; KEY=VALUE chooses among its runs"
            )
        if not (folder / "metrics.jsonl").exists():  # of a run itself, not a record
            records, damaged = read_records(folder)
            found += [run for run, _ in records]
            left_out += damaged
        for directory in find_runs(folder):
            try:
                found.append(read_run(directory)[0])
            except DamagedRecord as error:
                left_out.append(f"{directory}: {error}")
    left_out += [
        f"{run.get('run')}: {run.get('state')}" for run in found if run.get("state") not in RECORDED
    ]
    return [run for run in found if run.get("state") in RECORDED], left_out


def choose(runs, choices):
    """Those of `runs` whose configs have the values of `choices`, each KEY=VALUE or KEY=VALUE,VALUE. Raises UserError."""
    for text in choices:
        key, _, values = text.partition("=")
        flat = f"{key}.name" if key in GROUPS else key
        keys = {known for run in runs for known in flatten(run["config"])}
        if runs and flat not in keys:
            raise UserError(f"{text}: no run has a key {key}{nearest(key, {*keys, *GROUPS})}")
        try:
            wanted = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise UserError(f"{text}: {values} is not a value") from None
        runs = [run for run in runs if flatten(run["config"]).get(flat) in wanted]
    if not runs:
        raise UserError(f"no finished run there has {' '.join(choices) or 'a result'}")
    return runs


def _values(runs):
    """{key: its different values, as JSON} over the configs of `runs`."""
    configs = [identity(run["config"]) for run in runs]
    keys = sorted({key for config in configs for key in config})
    return {key: sorted({json.dumps(config.get(key)) for config in configs}) for key in keys}


def refuse_several_groups(runs):
    """Raise UserError where runs differ in more than attention and seed (and what only changes rounding)."""
    differences = {
        key: found
        for key, found in _values(runs).items()
        if len(found) > 1 and not is_under(key, FREE)
    }
    if differences:
        lines = [
            f"{key}: {', '.join(found)}".replace('"', "") for key, found in differences.items()
        ]
        names = [key for key in differences if key.endswith(".name")] or list(differences)
        advice = " ".join(f"{key.removesuffix('.name')}={differences[key][0]}" for key in names)
        lines.append(f"one group alone, for example: {advice}".replace('"', ""))
        raise listed("these runs differ in more than attention and seed:", lines)


def label_arms(runs):
    """The rows of `runs`; an attention that was trained with several settings is an arm for each: "se reduction=8"."""
    rows = []
    for attention in {run["attention"] for run in runs}:
        own = [run for run in runs if run["attention"] == attention]
        several = [
            key
            for key, found in _values(own).items()
            if key.startswith("attention.") and len(found) > 1
        ]
        for run in own:
            settings = [
                f"{key.removeprefix('attention.')}={identity(run['config']).get(key)}"
                for key in several
            ]
            rows.append(row(run) | {"attention": " ".join([attention, *settings])})
    return rows


def _protocol(runs):
    """(the protocol of compared runs in words, a warning where it is not the paper's)."""
    first = runs.iloc[0]
    deviations = {
        f"{key}={value}": None
        for text in runs["deviations"]
        for key, value in json.loads(text).items()
    }
    shared = [words for words in deviations if not words.startswith("attention.")]
    words = ", ".join([f"schedule={first.schedule}", f"precision={first.precision}", *shared])
    if deviations:
        return words, f"Not the protocol of schedule={first.schedule}: {', '.join(deviations)}."
    paper = first.schedule == PAPER_SCHEDULE.get(first.data)
    return words, "" if paper else f"Not the paper's schedule: schedule={first.schedule}."


def compare_runs(runs, baseline="none", name="comparison"):
    """(Table, figure) of runs as `choose` returns them, every attention against `baseline`. Raises UserError."""
    refuse_several_groups(runs)
    selection = one_a_seed(frame(label_arms(runs)))
    arms = dict(list(selection.runs.groupby("attention", sort=False)))
    if baseline not in arms:
        raise UserError(
            f"no arm {baseline} among these runs: --against one of {', '.join(arms)}{nearest(baseline, arms)}"
        )
    if len(arms) < 2:
        raise UserError(f"only {baseline} is among these runs: there is nothing to compare it with")
    first = selection.runs.iloc[0]
    groups = {
        (first.data, first.model): {
            attention: arms[attention] for attention in in_order(arms, (baseline, *arms))
        }
    }
    protocol = Protocol(first.schedule, first.precision)
    table = compare_groups(groups, selection, protocol, baseline)
    (words, warning), network = _protocol(selection.runs), title(first.data, first.model)
    heading = f"Every attention against {baseline}: {network}, {words}"
    figure = forest(
        list(forest_rows(table.records)), f"{network}: attention minus {baseline}\n{words}"
    )
    return table._replace(name=name, title=heading, warning=warning), figure


def terminal(table):
    """A table for the terminal: its title, columns of equal width, its notes."""
    cells = pd.DataFrame(table.rows, columns=table.header).iloc[:, 2:].to_string(index=False)
    return "\n\n".join(filter(None, [table.title, table.warning, cells, *table.notes]))
