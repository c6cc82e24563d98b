"""Any runs that differ in attention and seed alone, compared seed by seed: a protocol of one's own."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from lcm.config.identity import NO_DEVIATION, identity, is_under
from lcm.config.options import GROUPS, flatten
from lcm.errors import UserError, listed, nearest
from lcm.reporting.comparison import WORDS, against, header, pair_notes, row_and_record, run_notes, too_few_pairs
from lcm.reporting.figures import forest
from lcm.reporting.protocol import PAPER_SCHEDULE, in_order, one_a_seed, title
from lcm.reporting.records import RECORDED, Damaged, check, find_runs, read_records, read_run
from lcm.reporting.render import Table
from lcm.reporting.report import forest_rows
from lcm.reporting.runs import frame

FREE = tuple(key for key in NO_DEVIATION if key != "precision") + ("attention",)  # in what compared runs may differ


def read_folders(folders):
    """([(run.json, row of runs.csv)], [what was left out and why]) of folders of runs, or of records."""
    runs, left_out = [], []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder}: name a folder of runs or of records; key=value chooses among its runs"
            )
        if any(folder.glob("*.jsonl")) and not (folder / "metrics.jsonl").exists():
            records, damaged = read_records(folder)
            runs += [(run, check(run, epochs)) for run, epochs in records.values()]
            left_out += damaged
            continue
        for directory in find_runs(folder):
            try:
                run, epochs = read_run(directory)
                if run["state"] in RECORDED:
                    runs.append((run, check(run, epochs)))
                else:
                    left_out.append(f"{directory}: {run['state']}")
            except (Damaged, FileNotFoundError) as error:
                left_out.append(f"{directory}: {error}")
    return runs, left_out


def choose(runs, choices):
    """Those of `runs` whose configs have the values of `choices`, each "key=value" or "key=value,value" as train.py takes them."""
    for text in choices:
        key, _, values = text.partition("=")
        flat = f"{key}.name" if key in GROUPS else key
        keys = {known for run, _ in runs for known in flatten(run["config"])}
        if runs and flat not in keys:
            raise UserError(f"{text}: no run has a setting {key}{nearest(key, {*keys, *GROUPS})}")
        try:
            wanted = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise UserError(f"{text}: {values} is not a value") from None
        runs = [(run, row) for run, row in runs if flatten(run["config"]).get(flat) in wanted]
    if not runs:
        raise UserError(f"no finished run there has {' '.join(choices) or 'a result'}")
    return runs


def _refuse_differences(runs):
    """Raise UserError where runs differ in more than attention and seed, or those of one attention in its settings."""
    values = {}  # {key: how often each value}; the settings of a module under its own name
    for run, row in runs:
        for key, value in identity(run["config"]).items():
            name = f"{row['attention']}: {key}" if key.startswith("attention.") else key
            if not is_under(key, FREE) or (name != key and key != "attention.name"):
                values.setdefault(name, Counter())[json.dumps(value)] += 1
    differences = {key: counted for key, counted in values.items() if len(counted) > 1}
    if differences:
        lines = [
            f"{key}: {', '.join(f'{value} ({count} runs)' for value, count in counted.most_common(5))}"
            for key, counted in list(differences.items())[:12]
        ]
        key = min(differences, key=lambda key: not key.endswith(".name"))
        hint = f"{key.rpartition(': ')[2].removesuffix('.name')}={differences[key].most_common(1)[0][0]}"
        raise listed(
            f"these {len(runs)} runs cannot be compared: they must differ in attention and seed alone, but they differ in",
            [*lines, f"choose some of them, for example with {hint.replace(chr(34), '')}"],
        )


def _protocol(runs):
    """(the protocol of compared runs in words, in what it deviates from that of its names and each arm from that of its own)."""
    first, deviations = runs.iloc[0], {}
    for run in runs.itertuples():
        for key, value in json.loads(run.deviations).items():
            name = f"{run.attention}: {key}" if key.startswith("attention.") else key
            deviations[name] = f"{name}={value}"
    shared = [words for key, words in deviations.items() if ": " not in key]
    words = ", ".join([f"schedule={first.schedule}", f"precision={first.precision}", *shared])
    paper = first.schedule == PAPER_SCHEDULE.get(first.data)
    if deviations:
        return words, f"Not the protocol of schedule={first.schedule}: {', '.join(deviations.values())}."
    return words, "" if paper else f"Not the paper's schedule: schedule={first.schedule}."


def compare_runs(runs, baseline="none", name="comparison"):
    """(Table, figure) of runs as `choose` returns them, every attention against `baseline`. Raises UserError."""
    _refuse_differences(runs)
    selection = one_a_seed(frame([row for _, row in runs]))
    data, model = runs[0][1]["data"], runs[0][1]["model"]
    arms = dict(list(selection.runs.groupby("attention", sort=False)))
    if baseline not in arms or len(arms) < 2:
        raise UserError(
            f"nothing to compare with {baseline}: there are finished runs of {', '.join(arms) or 'no attention'}"
        )
    compared = against(
        {attention: arms[attention] for attention in in_order(arms, (baseline, *in_order(arms)))}, baseline
    )
    words, warning = _protocol(selection.runs)
    facts = {"data": data, "model": model, "schedule": selection.runs["schedule"].iloc[0]}
    facts["precision"] = selection.runs["precision"].iloc[0]
    lines = [row_and_record(facts | {"attention": attention}, one) for attention, one in compared.items()]
    rows, records = [row for row, _ in lines], pd.DataFrame([record for _, record in lines], dtype=object)
    notes = [WORDS.format(against=baseline, family=f"{len(arms) - 1} comparisons of this table")]
    if needed := too_few_pairs(compared):
        notes.append(f"Pairs that the test needs before any corrected p-value can reach 0.05: {needed}.")
    notes += run_notes(*selection) + pair_notes([one.pairs for one in compared.values()])
    heading = f"Every attention against {baseline}: {title(data, model)}, {words}"
    table = Table(name, heading, header(baseline), rows, notes, records, warning=warning, labels=3)
    figure = forest(list(forest_rows(records)), f"{title(data, model)}: attention minus {baseline}\n{words}")
    return table, figure
