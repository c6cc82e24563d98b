"""Any runs that differ in attention and seed alone, compared seed by seed: one's own protocol."""

import itertools
import json
from pathlib import Path

import pandas as pd

from lcm.config.compose import GROUPS, flatten, read
from lcm.config.identity import ADDED, NO_DEVIATION, differing, identity, is_under
from lcm.errors import UserError, listed, nearest, plural
from lcm.reporting.figures import forest
from lcm.reporting.paired import in_family, make_rows, rows_table
from lcm.reporting.protocol import PAPER, PAPER_SCHEDULE, Protocol, in_order, one_a_seed, title
from lcm.reporting.records import read_records, read_run_directories, row
from lcm.reporting.report import forest_rows
from lcm.reporting.runs import frame

# what may differ between compared runs
FREE = ("attention", *(key for key in NO_DEVIATION if key != "precision"))


def read_folders(folders):
    """([run.json of each finished or failed run], [what was left out and why]) of folders of runs
    or of records. Raises UserError where a folder is missing."""
    found, left_out = {}, []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder}: name a folder of runs or of records; KEY=VALUE chooses among "
                "its runs"
            )
        records, damaged_records = read_records(folder)
        runs, unfinished, damaged_runs = read_run_directories(folder)
        # A run and its record are one.
        found |= {(run["run"], run.get("start"), run.get("end")): run for run, _ in records + runs}
        left_out += damaged_records + damaged_runs + unfinished
    finished = {key[:2] for key, run in found.items() if run["state"] == "finished"}
    # A failed run that was continued to its end somewhere else is that run.
    chosen = [
        run for key, run in found.items() if run["state"] == "finished" or key[:2] not in finished
    ]
    return chosen, left_out


def flat(run):
    """The flat config of a run.json; keys that came later have the values of the runs before."""
    return ADDED | flatten(run["config"])


def flat_key(runs, key, said):
    """A key as flat configs have it: "data" is "data.name". UserError where no run has it."""
    name = f"{key}.name" if key in GROUPS else key
    known = {known for run in runs for known in flat(run)}
    if runs and name not in known:
        raise UserError(f"{said}: no run has a key {key}{nearest(key, {*known, *GROUPS})}")
    return name


def choose(runs, choices):
    """Those of `runs` whose configs have the values of `choices`, each KEY=VALUE or
    KEY=VALUE,VALUE. Raises UserError."""
    for text in choices:
        key, _, values = text.partition("=")
        name = flat_key(runs, key, text)
        # Read as YAML has it, like the configs: 5e-4 is a number, and equals 0.0005.
        wanted = read(f"[{values}]")
        runs = [
            run
            for run in runs
            if flat(run).get(name) in wanted
            or (name == "data.name" and run["data"] in wanted)  # its label
        ]
    if not runs:
        raise UserError(f"no finished run there has {' '.join(choices) or 'a result'}")
    return runs


def refuse_several_groups(runs):
    """Raise UserError where runs differ in more than attention and seed (and in rounding)."""
    found = differing([identity(run["config"]) for run in runs])
    if differ := {key: values for key, values in found.items() if not is_under(key, FREE)}:
        # Two schedules differ in many keys, most of which follow from the name: where names
        # differ, the advice is about them alone.
        names = [key for key in differ if key.endswith(".name")] or list(differ)
        keys = [name.removesuffix(".name") for name in names]
        lines = [f"{key}: {', '.join(values)}" for key, values in differ.items()]
        one = identity(runs[0]["config"])  # values that occur together
        example = " ".join(
            f"{key}={json.dumps(one.get(name))}" for key, name in zip(keys, names, strict=True)
        )
        lines.append(f"one group alone, for example: {example}")
        lines.append(f"or a table for each value: {' '.join(f'--by {key}' for key in keys)}")
        raise listed(
            "these runs differ in more than attention and seed:",
            [line.replace('"', "") for line in lines],
        )


def label_arms(runs):
    """The rows of `runs`; an attention with several settings is an arm for each: "se
    reduction=8"."""
    rows = []
    for attention in {run["attention"] for run in runs}:
        own = [run for run in runs if run["attention"] == attention]
        # Within one attention: between two of them most settings differ. `frame` sorts the
        # rows, whatever the order of the set.
        configs = [identity(run["config"]) for run in own]
        keys = [key for key in differing(configs) if key.startswith("attention.")]
        for run, config in zip(own, configs, strict=True):
            settings = [f"{key.removeprefix('attention.')}={config.get(key)}" for key in keys]
            rows.append(row(run) | {"attention": " ".join([attention, *settings])})
    return rows


def split(runs, by):
    """[({key: value}, its runs)] for the different values of the keys `by`; those of an attention
    are told apart by `label_arms`."""
    names = {key: flat_key(runs, key, f"--by {key}") for key in by}
    names = {key: name for key, name in names.items() if not name.startswith("attention.")}
    groups = {}
    for run in runs:
        # A list is no key of a dict; flat configs have lists (schedule.divide_at).
        values = [str(v) if isinstance(v, list) else v for v in map(flat(run).get, names.values())]
        groups.setdefault(tuple(values), []).append(run)
    # Python does not order None, text and numbers among each other: by type first.
    ordered = sorted(groups, key=lambda values: [(str(type(v)), v) for v in values])
    return [(dict(zip(names, map(str, values), strict=True)), groups[values]) for values in ordered]


def compare_runs(runs, baseline="none", name="comparison", by=()):
    """(Table, figure) of runs as `choose` returns them, every attention against `baseline`.

    by: keys; each of their values has rows of its own, those of an attention an arm. Holm's
    correction is over all comparisons of the command. Raises UserError.
    """
    rows, parts = [], []
    for settings, group in split(runs, by):
        refuse_several_groups(group)
        selected = one_a_seed(frame(label_arms(group)))
        # one network, or versions of one's own
        for names, found in selected.groupby(["data", "model"], sort=False):
            finished = in_order(found[found["used"]]["attention"])
            if baseline not in finished:
                hint = f"--against one of {', '.join(finished)}{nearest(baseline, finished)}"
                where = "".join(f" with {key}={value}" for key, value in settings.items())
                raise UserError(f"no arm {baseline} of {title(*names)}{where}: {hint}")
            arms = [arm for arm in in_order(found[found["tried"]]["attention"]) if arm != baseline]
            wanted = [(*names, baseline, None), *((*names, arm, baseline) for arm in arms)]
            # The rows have columns for these two, with the label of a folder of images.
            other = {key: settings[key] for key in settings if key not in ("data", "model")}
            rows += [row._replace(settings=other) for row in make_rows(found, wanted)]
        parts.append(selected)
    # Every comparison shown is a chance of a false verdict, whatever `by` has split.
    corrected = in_family([row for row in rows if row.b])
    if not corrected:
        raise UserError(f"only {baseline} is among these runs: there is nothing to compare it with")
    # Back between the baselines' rows, which are no comparisons.
    in_turn = iter(corrected)
    rows = [next(in_turn) if row.b else row for row in rows]
    together = pd.concat(parts)
    words, warning = _protocol(together)
    networks = ", ".join(dict.fromkeys(title(row.data, row.model) for row in rows))
    plans = (PAPER.parent / "plans" / f"{name}.yaml" for name in together["schedule"].unique())
    # This protocol is for rows without a finished run; the others have that of their runs.
    table = rows_table(rows, together, Protocol(*together[["schedule", "precision"]].iloc[0]))
    heading = f"{networks}: attention minus {baseline}\n{words}"
    return table._replace(
        name=name,
        title=f"Every attention against {baseline}: {networks}, {words}",
        warning=warning,
        notes=[
            f"p (Holm): over the {plural(len(corrected), 'comparison')} chosen here.",
            *(
                f"Planned in results/plans/{plan.name}: scripts/tables.py judges these runs, once "
                "all of the plan's seeds are there; no verdict here counts."
                for plan in plans
                if plan.exists()
            ),
            *table.notes,
        ],
    ), forest(forest_rows(rows, {}), heading)


def _protocol(runs):
    """(the protocol of compared runs in words, a warning where it is not the paper's)."""
    each = [
        [f"{key}={value}" for key, value in json.loads(text).items()] for text in runs["deviations"]
    ]
    deviations = dict.fromkeys(itertools.chain(*each))
    everywhere = [words for words in deviations if all(words in own for own in each)]
    some = [words for words in deviations if words not in everywhere]
    # Settings of an attention are in the labels of their arms, not in the words about all runs.
    shared = [words for words in everywhere if not words.startswith("attention.")]
    schedules = dict.fromkeys(f"schedule={name}" for name in runs["schedule"])
    # Data that the paper does not have maps to NaN, which equals no schedule.
    others = runs[runs["schedule"] != runs["data"].map(PAPER_SCHEDULE)]["schedule"]
    warning = ""
    if deviations:
        found = [", ".join(everywhere), f"in some runs {', '.join(some)}" if some else ""]
        warning = f"Not the protocol of {', '.join(schedules)}: {'; '.join(filter(None, found))}."
    elif len(others):
        warning = f"Not the paper's schedule: schedule={', '.join(others.unique())}."
    return ", ".join(
        [*schedules, *map("precision={}".format, runs["precision"].unique()), *shared]
    ), warning


def terminal(table):
    """A table for the terminal: its title, columns of equal width, its notes."""
    cells = pd.DataFrame(table.rows, columns=table.header)
    cells = cells.drop(columns=[key for key in ("Data", "Network") if cells[key].nunique() == 1])
    parts = [table.title, table.warning, cells.to_string(index=False), table.method, *table.notes]
    return "\n\n".join(filter(None, parts))
