"""The tables: the paper's five, its numbers beside ours, and every attention against none.

A cell takes the finished runs of its row (network, attention, data) with the protocol's schedule and precision and without
deviations, one per seed, and shows the last epoch's test accuracy: mean, sample standard deviation (n - 1), number of seeds.
Where nothing was run it has a dash, and the command that trains the run is below the table.
"""

from pathlib import Path

import pandas as pd

from lcm.reporting.paired import comparison_table, measured, run_notes
from lcm.reporting.protocol import (
    DATA_TITLE,
    METRIC_TITLE,
    NETWORK_TITLE,
    Protocol,
    in_order,
    read_csv,
    select,
)
from lcm.reporting.render import Table, accuracy, elapsed, rounded, scaled, signed

TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}
COUNTS = {
    "table": "int64",
    "model": "str",
    "attention": "str",
    "params": "Int64",
    "gfloat": "float64",
    "macs": "Int64",
}
ARM = ["data", "model", "attention"]


def read_paper(results):
    """paper.csv in the paper's order; its counts stay text, as printed."""
    paper = pd.DataFrame(read_csv(Path(results) / "paper.csv"))
    return paper.astype({"table": int, "value": float})


def read_complexity(results):
    """complexity.csv; without rows where it has not been made."""
    file = Path(results) / "complexity.csv"
    rows = (
        pd.read_csv(file, keep_default_na=False)
        if file.exists()
        else pd.DataFrame(columns=list(COUNTS))
    )
    return rows[list(COUNTS)].astype(COUNTS)


def paper_table(number, selection, protocol, paper, complexity):
    """Table `number` of the paper beside the runs that a protocol has selected."""
    cells = paper[paper["table"] == number].merge(
        complexity, how="left", on=["table", "model", "attention"]
    )
    columns = list(dict.fromkeys(zip(cells["data"], cells["metric"], strict=True)))
    names = [
        "Model",
        "Para (M) paper",
        "Para (M) ours",
        "GFloat paper",
        "GFloat ours",
        "MACs (G) ours",
    ]
    for data, metric in columns:
        title = DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]
        names += [f"{title} paper", f"{title} ours", "ours - paper"]
    selection = selection._make(
        part.merge(cells[ARM].drop_duplicates()) for part in selection
    )  # of this table alone
    arms, empty = selection.arms(), selection.runs[:0]
    rows, records = [], []
    for label, line in cells.groupby("label", sort=False):
        first = line.iloc[0]
        row = [
            label,
            first.params_m,
            scaled(first.params, 6, 3),
            first.gflops,
            rounded(first.gfloat, 3),
        ]
        row.append(scaled(first.macs, 9, 3))
        for cell in line.itertuples():
            arm = arms.get((cell.data, cell.model, cell.attention), empty)
            overrides = [f"{key}={getattr(cell, key)}" for key in ("model", "attention", "data")]
            command = "" if len(arm) else protocol.command(f"experiment=table{number}", *overrides)
            found = measured(arm, cell.metric)
            difference = None if found["mean"] is None else found["mean"] - cell.value
            names_of_cell = {
                "table": number,
                "label": label,
                "model": cell.model,
                "attention": cell.attention,
            }
            names_of_cell |= {
                "data": cell.data,
                "metric": cell.metric,
                "schedule": protocol.schedule_of(cell.data),
            }
            counts = {
                "precision": protocol.precision,
                "params_m_paper": cell.params_m,
                "params": cell.params,
            }
            counts |= {"gfloat_paper": cell.gflops, "gfloat": cell.gfloat, "macs": cell.macs}
            records.append(names_of_cell | counts | {"paper": rounded(cell.value, 2)} | found)
            records[-1] |= {"difference": difference, "command": command}
            row += [
                rounded(cell.value, 2),
                accuracy(arm[f"test_{cell.metric}"]),
                signed(difference),
            ]
        rows.append(row)
    notes = _paper_notes(number, complexity) + run_notes(*selection)
    title = TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}"
    missing = tuple(dict.fromkeys(record["command"] for record in records if record["command"]))
    records = pd.DataFrame(records, dtype=object)
    return Table(
        f"table{number}{protocol.suffix}",
        title,
        names,
        rows,
        notes,
        records,
        missing,
        _warning(protocol),
    )


def _paper_notes(number, complexity):
    notes = [
        "Ours: test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). The paper does not say "
        "how many runs its numbers stand for, nor whether they are the last or the best epoch. GFloat is counted by the "
        "paper's counter, MACs are the true multiply-accumulates of one image (matrix products included)."
    ]
    if number == 4:
        notes.append(
            "The paper heads this table's column CIFAR-10; its caption and its text say CIFAR-100."
        )
    if number in (1, 2, 4):
        notes.append(
            "Parameters are those of the network with 10 classes, in the CIFAR-100 columns too, as in the paper."
        )
    if complexity.empty:
        notes.append(
            "Our counts are missing: `python scripts/complexity.py --csv results/complexity.csv`."
        )
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


def build(runs, protocol, results):
    """A protocol's tables: the paper's five (of other protocols than the paper's, those with a number), and the comparison
    of every attention with none where there are runs to compare."""
    selection, paper, complexity = (
        select(runs, protocol),
        read_paper(results),
        read_complexity(results),
    )
    tables = [paper_table(number, selection, protocol, paper, complexity) for number in TITLES]
    tables = [table for table in tables if protocol == Protocol() or table.filled]
    return tables + ([comparison_table(selection, protocol)] if len(selection.runs) else [])


def counts(runs):
    """What was run: by data, schedule and precision, with networks, devices and time."""
    header = ["data", "schedule", "precision", "networks", "on", "finished", "failed", "time"]
    rows = []
    titles = runs["data"].map(lambda data: DATA_TITLE.get(data, data))
    for names, members in runs.groupby([titles, "schedule", "precision"]):
        finished = (members["state"] == "finished").sum()
        networks = ", ".join(in_order(members["model"], NETWORK_TITLE))
        devices = "; ".join(sorted(set(members["device"].replace("", "unknown"))))
        time = elapsed(members["seconds"].sum())
        rows.append([*names, networks, devices, f"{finished}", f"{len(members) - finished}", time])
    return Table("counts", "What was run", header, rows, labels=5)
