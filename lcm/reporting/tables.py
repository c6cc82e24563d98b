"""The tables: the paper's five, its numbers beside ours, and every attention against none.

A cell takes finished runs of its row (network, attention, data) with the protocol's schedule and precision and without
deviations, one a seed, and shows the last epoch's test accuracy: mean, sample standard deviation (n - 1), number of seeds.
Where nothing was run it has a dash, and the command that fills it stands below the table.
"""

from pathlib import Path

import pandas as pd

from lcm.reporting.comparison import compare_groups, measured, run_notes
from lcm.reporting.protocol import (
    ATTENTIONS,
    DATA_TITLE,
    METRIC_TITLE,
    NETWORK_TITLE,
    Protocol,
    in_order,
    read_csv,
    select,
)
from lcm.reporting.render import Table, accuracy, rounded, scaled, signed

TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}
COUNTS = {"table": "int64", "model": "str", "attention": "str", "params": "Int64", "gfloat": "float64", "macs": "Int64"}
ARM = ["data", "model", "attention"]


def read_paper(results):
    """paper.csv in the paper's order; its counts stay text, as printed."""
    paper = pd.DataFrame(read_csv(Path(results) / "paper.csv"))
    return paper.astype({"table": int, "value": float})


def read_complexity(results):
    """complexity.csv; without rows where it has not been made."""
    file = Path(results) / "complexity.csv"
    rows = pd.read_csv(file, keep_default_na=False) if file.exists() else pd.DataFrame(columns=list(COUNTS))
    return rows[list(COUNTS)].astype(COUNTS)


def _command(*overrides, seeds=()):
    """The command line of a run, or of one for each seed."""
    multirun = ["-m"] if len(seeds) > 1 else []
    seed = [f"seed={','.join(map(str, sorted(seeds)))}"] if list(seeds) not in ([], [0]) else []
    return " ".join(["python train.py", *multirun, *overrides, *seed])


def _left_out(selection, arms):
    """The failed runs and the duplicates of some arms."""
    runs = selection.failed, selection.duplicates
    return [left[pd.MultiIndex.from_frame(left[ARM]).isin(list(arms))] if len(left) else left for left in runs]


def paper_table(number, selection, protocol, paper, complexity):
    """Table `number` of the paper beside the runs that a protocol has selected."""
    cells = paper[paper["table"] == number].merge(complexity, how="left", on=["table", "model", "attention"])
    columns = list(dict.fromkeys(zip(cells["data"], cells["metric"], strict=True)))
    names = ["Model", "Para (M) paper", "Para (M) ours", "GFloat paper", "GFloat ours", "MACs (G) ours"]
    for data, metric in columns:
        title = DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]
        names += [f"{title} paper", f"{title} ours", "ours - paper"]
    arms, empty = selection.arms(), selection.runs[:0]
    rows, groups, records, missing, model = [], [], [], {}, None
    for label, line in cells.groupby("label", sort=False):
        first = line.iloc[0]
        groups += [len(rows)] if model not in (None, first.model) else []
        model = first.model
        row = [label, first.params_m, scaled(first.params, 6, 3), first.gflops, rounded(first.gfloat, 3)]
        row.append(scaled(first.macs, 9, 3))
        for cell in line.itertuples():
            arm = arms.get((cell.data, cell.model, cell.attention), empty)
            overrides = [f"{key}={getattr(cell, key)}" for key in ("model", "attention", "data")]
            command = "" if len(arm) else _command(f"experiment=table{number}", *overrides, *protocol.overrides)
            missing |= {command: None} if command else {}
            found = measured(arm, cell.metric)
            difference = None if found["mean"] is None else found["mean"] - cell.value
            names_of_cell = {"table": number, "label": label, "model": cell.model, "attention": cell.attention}
            names_of_cell |= {"data": cell.data, "metric": cell.metric, "schedule": protocol.schedule_of(cell.data)}
            counts = {"precision": protocol.precision, "params_m_paper": cell.params_m, "params": cell.params}
            counts |= {"gfloat_paper": cell.gflops, "gfloat": cell.gfloat, "macs": cell.macs}
            records.append(names_of_cell | counts | {"paper": rounded(cell.value, 2)} | found)
            records[-1] |= {"difference": difference, "command": command}
            row += [rounded(cell.value, 2), accuracy(arm[f"test_{cell.metric}"]), signed(difference)]
        rows.append(row)
    notes = _paper_notes(number, complexity)
    keys = set(cells[ARM].itertuples(index=False, name=None))
    notes += run_notes(pd.concat([empty, *(arms[key] for key in arms if key in keys)]), *_left_out(selection, keys))
    title = TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}"
    return Table(
        f"table{number}{protocol.suffix}",
        title,
        names,
        rows,
        notes,
        pd.DataFrame(records, dtype=object),
        tuple(groups),
        tuple(missing),
        _warning(protocol),
    )


def _paper_notes(number, complexity):
    notes = [
        "Ours: test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). The paper does not say "
        "how many runs its numbers stand for, nor whether they are the last or the best epoch. GFloat is counted by the "
        "paper's counter, MACs are the true multiply-accumulates of one image (matrix products included)."
    ]
    if number == 4:
        notes.append("The paper heads this table's column CIFAR-10; its caption and its text say CIFAR-100.")
    if number in (1, 2, 4):
        notes.append(
            "Parameters are those of the network with 10 classes, in the CIFAR-100 columns too, as in the paper."
        )
    if complexity.empty:
        notes.append("Our counts are missing: `python scripts/complexity.py --csv results/complexity.csv`.")
    return notes


def _warning(protocol):
    if protocol.schedule:
        return (
            f"NOT the paper's schedule: the columns `ours` hold runs with {protocol.words}. "
            "They are no reproduction of the paper's numbers beside them."
        )
    if protocol.precision != "fp32":
        return f"The columns `ours` hold runs with precision={protocol.precision}; the paper's are taken for fp32."
    return ""


def comparison_table(selection, protocol):
    """Every attention against none, paired by seed, for each data set and network that a protocol has runs of.

    The digits' own table is called quickstart and has its rows before anything was run.
    """
    quickstart, empty = protocol.schedule == "digits", selection.runs[:0]
    found = selection.groups()
    if quickstart:
        found.setdefault(("digits", "resnet20"), empty)
    # For the paper's own schedule, rows that the paper has not are no gaps.
    shown = ("none",) if protocol.schedule is None else ATTENTIONS
    groups = {
        group: {name: runs[runs["attention"] == name] for name in in_order([*runs["attention"], *shown])}
        for group, runs in found.items()
    }

    def command(data, model, attention, seeds):
        if quickstart and (data, model) == ("digits", "resnet20"):
            return _command("experiment=quickstart", f"attention={attention}")
        overrides = [f"data={data}", f"model={model}", f"attention={attention}", *protocol.overrides]
        return _command(*overrides, seeds=seeds)

    name, title = f"comparison{protocol.suffix}", f"Every attention against none: {protocol.words}"
    warning = f"Not the paper's schedule: runs with {protocol.words}." if protocol.schedule else ""
    if quickstart:
        name = "quickstart" if protocol == Protocol("digits") else name
        title = "Quickstart: ResNet-20 with each attention on scikit-learn's digits"
        warning = f"A check that everything works, not a result about the paper: runs with {protocol.words}."
    table = compare_groups(groups, selection, protocol, command=command)
    return table._replace(name=name, title=title, warning=warning)


def build(runs, protocol, results):
    """A protocol's tables: the paper's five (of other protocols than the paper's, those with a number), and the comparison
    of every attention with none where there are runs to compare; for the digits, the quickstart's table alone."""
    selection = select(runs, protocol)
    if protocol.schedule == "digits":
        return [comparison_table(selection, protocol)]
    paper, complexity = read_paper(results), read_complexity(results)
    tables = [paper_table(number, selection, protocol, paper, complexity) for number in TITLES]
    tables = [table for table in tables if protocol == Protocol() or table.filled]
    return tables + ([comparison_table(selection, protocol)] if len(selection.runs) else [])


def counts(runs):
    """What was run: by data, schedule and precision, with networks, hours and devices."""
    header = ["data", "schedule", "precision", "networks", "on", "finished", "failed", "hours"]
    rows = []
    titles = runs["data"].map(lambda data: DATA_TITLE.get(data, data))
    for names, members in runs.groupby([titles, "schedule", "precision"]):
        finished = (members["state"] == "finished").sum()
        networks = ", ".join(in_order(members["model"], NETWORK_TITLE))
        devices = "; ".join(sorted(set(members["device"].replace("", "unknown"))))
        hours = f"{members['seconds'].sum() / 3600:.1f}"
        rows.append([*names, networks, devices, f"{finished}", f"{len(members) - finished}", hours])
    return Table("counts", "What was run", header, rows, labels=5)
