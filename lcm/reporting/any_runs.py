"""Any runs that differ in attention and seed alone, compared seed by seed: a protocol of one's own."""

import json
from pathlib import Path

import pandas as pd

from lcm.config.compose import COMPOSITION_ERRORS, GROUPS, flatten, read
from lcm.config.identity import NO_DEVIATION, identity, is_under
from lcm.errors import UserError, listed, nearest
from lcm.reporting.figures import forest
from lcm.reporting.paired import in_family, make_rows, rows_table
from lcm.reporting.protocol import (
    PAPER_SCHEDULE,
    Protocol,
    Selection,
    in_order,
    one_a_seed,
    title,
)
from lcm.reporting.records import RECORDED, DamagedRecord, find_runs, read_records, read_run, row
from lcm.reporting.render import plural
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
    usable = []
    for run in found:
        if run.get("state") not in RECORDED:
            left_out.append(f"{run.get('run')}: {run.get('state')}")
        elif not isinstance(run.get("config"), dict):
            left_out.append(f"{run.get('run')}: has no config to compare")
        else:
            usable.append(run)
    return usable, left_out


def choose(runs, choices):
    """Those of `runs` whose configs have the values of `choices`, each KEY=VALUE or KEY=VALUE,VALUE. Raises UserError."""
    for text in choices:
        key, _, values = text.partition("=")
        flat = f"{key}.name" if key in GROUPS else key
        keys = {known for run in runs for known in flatten(run["config"])}
        if runs and flat not in keys:
            raise UserError(f"{text}: no run has a key {key}{nearest(key, {*keys, *GROUPS})}")
        try:
            wanted = read(f"[{values}]")
        except COMPOSITION_ERRORS:
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
    """Raise UserError where runs differ in more than attention and seed (and in rounding)."""
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
        keys = [key.removesuffix(".name") for key in names]
        choices = zip(keys, names, strict=True)
        advice = " ".join(f"{key}={differences[name][0]}" for key, name in choices)
        lines.append(f"one group alone, for example: {advice}".replace('"', ""))
        lines.append(f"or a table for each value: {' '.join(f'--by {key}' for key in keys)}")
        raise listed("these runs differ in more than attention and seed:", lines)
    if len({row(run)["own_model"] for run in runs}) > 1:
        raise UserError(
            f"these runs of {runs[0]['model']} were trained with several versions of its source: name "
            "the folders of one version, or train the earlier runs anew with rerun=true"
        )


def label_arms(runs, by=()):
    """The rows of `runs`; an attention with several settings is an arm for each: "se reduction=8".

    by: keys of an attention that are named even where they have one value.
    """
    rows = []
    for attention in {run["attention"] for run in runs}:
        own = [run for run in runs if run["attention"] == attention]
        several = [
            key
            for key, found in _values(own).items()
            if key.startswith("attention.") and (key in by or len(found) > 1)
        ]
        for run in own:
            values = {key: identity(run["config"]).get(key) for key in several}
            settings = [f"{key.removeprefix('attention.')}={v}" for key, v in values.items()]
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
    schedules = dict.fromkeys(f"schedule={name}" for name in runs["schedule"])
    words = ", ".join([*schedules, f"precision={first.precision}", *shared])
    if deviations:
        return words, f"Not the protocol of schedule={first.schedule}: {', '.join(deviations)}."
    paper = first.schedule == PAPER_SCHEDULE.get(first.data)
    return words, "" if paper else f"Not the paper's schedule: schedule={first.schedule}."


def split(runs, by):
    """[({key: value}, its runs)] for the different values of the keys `by`. Raises UserError."""
    flat = {key: f"{key}.name" if key in GROUPS else key for key in by}
    known = {name for run in runs for name in flatten(run["config"])}
    for key, name in flat.items():
        if name not in known:
            raise UserError(f"--by {key}: no run has such a key{nearest(key, {*known, *GROUPS})}")
    groups = {}
    for run in runs:
        config = flatten(run["config"])
        values = tuple(config.get(name) for name in flat.values())
        groups.setdefault(values, []).append(run)
    by_value = sorted(groups, key=lambda values: [(str(type(v)), v) for v in values])
    return [(dict(zip(by, map(str, values), strict=True)), groups[values]) for values in by_value]


def compare_runs(runs, baseline="none", name="comparison", by=()):
    """(Table, figure) of runs as `choose` returns them, every attention against `baseline`.

    by: keys; each of their values has rows of its own, those of an attention an arm. Holm's
    correction is over all comparisons of the command. Raises UserError.
    """
    rows, selections = [], []
    outer = [key for key in by if not key.startswith("attention.")]
    split(runs, by)  # refuses unknown keys
    for settings, group in split(runs, outer):
        refuse_several_groups(group)
        selection = one_a_seed(frame(label_arms(group, by)))
        finished = {attention for *_, attention in selection.arms()}
        tried = {attention for *_, attention in selection.tried()}
        if baseline not in finished:
            hint = f"--against one of {', '.join(in_order(finished))}{nearest(baseline, finished)}"
            where = "".join(f" with {key}={value}" for key, value in settings.items())
            raise UserError(f"no arm {baseline} among these runs{where}: {hint}")
        first = selection.runs.iloc[0]
        others = [arm for arm in in_order(tried) if arm != baseline]
        wanted = [(first.data, first.model, baseline, None)]
        wanted += [(first.data, first.model, arm, baseline) for arm in others]
        rows += make_rows(selection, wanted, **settings)
        selections.append(selection)
    if all(row.b is None for row in rows):
        raise UserError(f"only {baseline} is among these runs: there is nothing to compare it with")
    corrected = iter(in_family([row for row in rows if row.b]))
    rows = [next(corrected) if row.b else row for row in rows]
    together = Selection(*map(pd.concat, zip(*selections, strict=True)))
    (words, warning), first = _protocol(together.runs), together.runs.iloc[0]
    networks = ", ".join(dict.fromkeys(title(row.data, row.model) for row in rows))
    table = rows_table(rows, together, Protocol(first.schedule, first.precision))
    count = sum(row.b is not None for row in rows)
    note = f"p (Holm): over the {plural(count, 'comparison')} that were chosen here."
    figure = forest(
        list(forest_rows(table.records)), f"{networks}: attention minus {baseline}\n{words}"
    )
    heading = f"Every attention against {baseline}: {networks}, {words}"
    notes = [note, *table.notes]
    return table._replace(name=name, title=heading, warning=warning, notes=notes), figure


def terminal(table):
    """A table for the terminal: its title, columns of equal width, its notes."""
    cells = pd.DataFrame(table.rows, columns=table.header)
    cells = cells.drop(columns=["Data", "Network"] if cells["Network"].nunique() == 1 else [])
    parts = [table.title, table.warning, cells.to_string(index=False), table.method, *table.notes]
    return "\n\n".join(filter(None, parts))
