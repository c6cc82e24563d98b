"""The tables: the paper's five, its numbers beside ours, and every attention against none.

A cell takes the finished runs of its row (network, attention, data) with the protocol's schedule
and precision and without deviations, one per seed, and shows the last epoch's test accuracy: mean,
sample standard deviation (n - 1), number of seeds. Where nothing was run it has a dash, and the
command that trains the run is below the table.
"""

import json
from pathlib import Path

import pandas as pd

from lcm.reporting.claims import judge_statements, read_claims
from lcm.reporting.paired import in_family, make_rows, measured, rows_table, run_notes
from lcm.reporting.protocol import (
    ARM,
    ATTENTIONS,
    DATA_TITLE,
    METRIC_TITLE,
    NETWORK_TITLE,
    Protocol,
    arms_of,
    in_order,
    read_csv,
    read_plan,
    select,
)
from lcm.reporting.render import Table, elapsed, reached, rounded, scaled, signed

TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}
TEN_CLASSES = (
    "Parameters are those of the network with 10 classes, in the CIFAR-100 columns too, as in the "
    "paper."
)
HEADING = "The paper heads this table's column CIFAR-10; its caption and its text say CIFAR-100."
NOTES = {1: [TEN_CLASSES], 2: [TEN_CLASSES], 4: [HEADING, TEN_CLASSES]}
METHOD = (
    "Ours: test accuracy of the last epoch, mean ± sample standard deviation (number "
    "of seeds). The paper does not say how many runs its numbers stand for, nor whether they are "
    "the last or the best epoch. GFloat is counted as in the paper, MACs are the true "
    "multiply-accumulates of one image (matrix products included)."
)
FAMILY = {
    "paper": "p (Holm) and verdict are those of `claims.md`, corrected over all comparisons that "
    "the claims make in a table of the paper; where the paper claims nothing there is no verdict.",
    "plan": "p (Holm): over each planned family, for each data set (`results/plans/{name}.yaml`, "
    "written before the first run); other rows have no verdict. Tested once all {seeds} seeds are "
    "there. Two rules, older than the first result, are stricter than the plan's test: a verdict "
    "also asks for the 95 % interval, and a diverged run also loses its pair. Runs of the "
    "plan's network with other seeds or settings are in no table of the schedule. The paper's "
    "differences are those of its own schedule.",
    "none": "No plan was written for this schedule before its runs. p (Holm): over all rows of one "
    "network on one data set, those without runs too.",
}
# Int64 has a missing value; int64 would become float where a merge finds no count.
COUNTS = {
    "table": "int64",
    "model": "str",
    "attention": "str",
    "params": "Int64",
    "gfloat": "float64",
    "macs": "Int64",
}


def read_paper(results):
    """paper.csv in the paper's order; its counts stay text, as printed."""
    return pd.DataFrame(read_csv(Path(results) / "paper.csv")).astype(
        {"table": int, "value": float}
    )


def top1(paper):
    """{(data, model, attention): the paper's top-1 accuracy}"""
    # DenseNet-100 with LCM2 and none are in two tables, with the same numbers.
    return paper[paper["metric"] == "top1"].drop_duplicates(ARM).set_index(ARM)["value"].to_dict()


def read_complexity(results):
    """complexity.csv: the counts of the paper's networks. Raises UserError where it is missing."""
    return pd.DataFrame(read_csv(Path(results) / "complexity.csv"))[list(COUNTS)].astype(COUNTS)


def paper_table(number, runs, protocol, plan, paper, complexity):
    """Table `number` of the paper beside the runs that a protocol has selected."""
    keys = ["table", "model", "attention"]
    cells = paper[paper["table"] == number].merge(complexity, how="left", on=keys)
    header = [
        *("Model", "Para (M) paper", "Para (M) ours", "GFloat paper", "GFloat ours"),
        "MACs (G) ours",
    ]
    for data, metric in dict.fromkeys(zip(cells["data"], cells["metric"], strict=True)):
        title = DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]
        header += [f"{title} paper", f"{title} ours", "ours - paper"]
    runs = runs.merge(cells[ARM].drop_duplicates())  # of this table alone
    used, tried = arms_of(runs[runs["used"]]), arms_of(runs[runs["tried"]])
    rows, records = [], []
    for label, line in cells.groupby("label", sort=False):
        first = line.iloc[0]
        row = [
            label,
            first.params_m,
            scaled(first.params, 6, 3),
            first.gflops,
            rounded(first.gfloat, 3),
            scaled(first.macs, 9, 3),
        ]
        for cell in line.itertuples():
            name = cell.data, cell.model, cell.attention
            seeds = tried(*name)["seed"].nunique()
            found = measured(used(*name), seeds, cell.metric)
            difference = None if found["mean"] is None else found["mean"] - cell.value
            choices = {key: getattr(cell, key) for key in ("model", "attention", "data")}
            command = protocol.command(plan, experiment=f"table{number}", **choices)
            records.append(
                {
                    **{"table": number, "label": label, **choices, "metric": cell.metric},
                    "schedule": protocol.schedule_of(cell.data),
                    "precision": protocol.precision,
                    "params_m_paper": cell.params_m,
                    "params": cell.params,
                    "gfloat_paper": cell.gflops,
                    "gfloat": cell.gfloat,
                    "macs": cell.macs,
                    "paper": rounded(cell.value, 2),
                    **found,
                    "difference": difference,
                    "command": "" if seeds else command,
                }
            )
            row += [rounded(cell.value, 2), reached(found), signed(difference)]
        rows.append(row)
    return Table(
        name=f"table{number}{protocol.suffix}",
        title=TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}",
        header=header,
        rows=rows,
        notes=[*NOTES.get(number, ()), *run_notes(runs)],
        records=pd.DataFrame(records, dtype=object),
        missing=tuple(dict.fromkeys(r["command"] for r in records if r["command"])),
        warning=_warning(protocol),
        method=METHOD,
    )


def _warning(protocol):
    if protocol.schedule:
        return (
            f"NOT the paper's schedule: the columns `ours` hold runs with {protocol.words}. "
            "They are no reproduction of the paper's numbers beside them."
        )
    if protocol.precision != "fp32":
        return (
            f"The columns `ours` hold runs with precision={protocol.precision}; the paper's are "
            "taken for fp32."
        )
    return ""


def comparison_table(runs, protocol, results):
    """Every attention against none, paired by seed, wherever a protocol has runs.

    The family that corrects a p-value is what was planned: by the paper's claims under its own
    schedule, by the plan of a schedule that has one. Else it is every attention of the paper (on a
    network of one's own, which has no sizes for them, those that were trained) and one's own.
    """
    plan, paper = read_plan(results, protocol), read_paper(results)
    runs, rows, claimed = select(runs, protocol, plan), [], {}
    seeds = len(plan["seeds"]) if plan else 0
    warning = f"Not the paper's schedule: runs with {protocol.words}." if protocol.schedule else ""
    kind = "plan" if plan else "none" if protocol.schedule else "paper"
    if kind == "paper":
        judged = judge_statements(read_claims(Path(results) / "claims.yaml", paper), runs)
        # Only plain gains: the column here does not ask whether two arms are almost the same.
        claimed = {statement[:4]: row for statement, row in judged.items() if statement.is_gain}
    for (data, model), found in runs[runs["used"]].groupby(["data", "model"], sort=False):
        # A family is what could have been compared, whichever runs came first.
        complete = kind == "none" and model in NETWORK_TITLE
        arms = in_order([*found["attention"], "none", *(ATTENTIONS if complete else ())])
        planned = []
        if plan and model == plan["model"] and data in plan["data"]:
            families = [
                make_rows(runs, [(data, model, pair["a"], pair["b"]) for pair in family])
                for family in plan["families"]
            ]
            # All families of a data set are judged at once, when the last pair is there: no
            # comparison is judged earlier because its pairs came first.
            pairs = [row.comparison.n for family in families for row in family]
            due = min(pairs) >= seeds
            planned = [row for family in families for row in in_family(family, seeds, due)]
            if not due:
                count = " to ".join(map(str, sorted({min(pairs), max(pairs)})))
                warning += f" {DATA_TITLE[data]}: {count} of {seeds} pairs; "
                warning += f"judged when all {seeds} are there."
        # What the plan compares with none already has its row; the other arms get one.
        named = {"none", *(row.a for row in planned if row.b == "none")}
        others = make_rows(runs, [(data, model, arm, "none") for arm in arms if arm not in named])
        if kind == "none":
            others = in_family(others)
        rows += make_rows(runs, [(data, model, "none", None)]) + planned
        # Where the paper claims it: the row with the p-value that claims.md has.
        rows += [claimed.get((row.data, row.model, row.a, row.b), row) for row in others]
    table = rows_table(rows, runs, protocol, plan, top1(paper))
    return table._replace(
        name=f"comparison{protocol.suffix}",
        title=f"{'Planned comparisons' if plan else 'Attentions against none'}: {protocol.words}",
        notes=[FAMILY[kind].format(name=protocol.schedule, seeds=seeds), *table.notes],
        warning=warning,
    )


def build(runs, protocol, results):
    """A protocol's tables: the paper's five (of other protocols than the paper's, those with a
    number), and the comparison of every attention with none where there are runs to compare."""
    plan, paper = read_plan(results, protocol), read_paper(results)
    complexity = read_complexity(results)
    own = select(runs, protocol, plan)
    tables = [paper_table(number, own, protocol, plan, paper, complexity) for number in TITLES]
    tables = [table for table in tables if protocol == Protocol() or table.filled]
    return tables + ([comparison_table(runs, protocol, results)] if own["used"].any() else [])


def counts(runs):
    """What was run: by data, schedule, precision and deviations; networks, devices and time."""
    titles = runs["data"].map(lambda data: DATA_TITLE.get(data, data))
    compiled = runs["compile"].map({True: ", compiled"}).fillna("")
    rows = []
    # Deviations are JSON with sorted keys: equal settings are equal text.
    for names, own in runs.groupby(
        [titles, "schedule", runs["precision"] + compiled, "deviations"]
    ):
        deviations = (f"{key}={value}" for key, value in json.loads(names[3]).items())
        finished = (own["state"] == "finished").sum()
        rows.append(
            [
                *names[:3],
                ", ".join(deviations) or "none",
                ", ".join(in_order(own["model"], NETWORK_TITLE)),
                "; ".join(sorted(set(own["device"]))),
                str(finished),
                str(len(own) - finished),
                elapsed(own["seconds"].sum()),
            ]
        )
    header = [
        *("data", "schedule", "precision", "deviations", "networks", "on"),
        *("finished", "failed", "time"),
    ]
    return Table("counts", "What was run", header, rows, labels=6)
