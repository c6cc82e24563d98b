"""The tables: the paper's five, its numbers beside ours, and every attention against none.

A cell takes the finished runs of its row (network, attention, data) with the protocol's schedule and precision and without
deviations, one per seed, and shows the last epoch's test accuracy: mean, sample standard deviation (n - 1), number of seeds.
Where nothing was run it has a dash, and the command that trains the run is below the table.
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
    in_order,
    read_csv,
    read_plan,
    select,
)
from lcm.reporting.render import DASH, Table, accuracy, elapsed, rounded, scaled, signed

TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}
METHOD = (
    "Ours: test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). The "
    "paper does not say how many runs its numbers stand for, nor whether they are the last or the "
    "best epoch. GFloat is counted as in the paper, MACs are the true multiply-accumulates of one "
    "image (matrix products included)."
)
FAMILY = {
    "paper": "p (Holm) and verdict are those of `claims.md`, corrected over all comparisons that the "
    "claims make in a table of the paper; where the paper claims nothing there is no verdict.",
    "plan": "p (Holm): over each planned family, for each data set (`results/plans/{name}.yaml`, "
    "written before the first run); other rows have no verdict. Tested once all {seeds} seeds are "
    "there. The paper's differences are those of its own schedule.",
    "none": "No plan was written for this schedule before its runs. p (Holm): over all rows of one "
    "network on one data set, those without runs too.",
}
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
    paper = pd.DataFrame(read_csv(Path(results) / "paper.csv"))
    return paper.astype({"table": int, "value": float})


def top1(paper):
    """{(data, model, attention): the paper's top-1 accuracy}"""
    rows = paper[paper["metric"] == "top1"].drop_duplicates(ARM)
    return rows.set_index(ARM)["value"].to_dict()


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
    keys = ["table", "model", "attention"]
    cells = paper[paper["table"] == number].merge(complexity, how="left", on=keys)
    columns = list(dict.fromkeys(zip(cells["data"], cells["metric"], strict=True)))
    header = ["Model", "Para (M) paper", "Para (M) ours", "GFloat paper", "GFloat ours"]
    header += ["MACs (G) ours"]
    for data, metric in columns:
        title = DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]
        header += [f"{title} paper", f"{title} ours", "ours - paper"]
    own = cells[ARM].drop_duplicates()
    selection = selection._make(part.merge(own) for part in selection)  # of this table alone
    arms, tried, empty = selection.arms(), selection.tried(), selection.runs[:0]
    rows, records = [], []
    for label, line in cells.groupby("label", sort=False):
        first = line.iloc[0]
        row = [label, first.params_m, scaled(first.params, 6, 3), first.gflops]
        row += [rounded(first.gfloat, 3), scaled(first.macs, 9, 3)]
        for cell in line.itertuples():
            name = cell.data, cell.model, cell.attention
            arm, seeds = arms.get(name, empty), tried.get(name, empty)["seed"].nunique()
            found = measured(arm, seeds, cell.metric)
            difference = None if found["mean"] is None else found["mean"] - cell.value
            overrides = [f"{key}={getattr(cell, key)}" for key in ("model", "attention", "data")]
            command = "" if seeds else protocol.command(f"experiment=table{number}", *overrides)
            names = ("table", "label", "model", "attention", "data", "metric")
            record = {key: getattr(cell, key) for key in names}
            record |= {"schedule": protocol.schedule_of(cell.data), "precision": protocol.precision}
            record |= {"params_m_paper": cell.params_m, "params": cell.params}
            record |= {"gfloat_paper": cell.gflops, "gfloat": cell.gfloat, "macs": cell.macs}
            record |= {"paper": rounded(cell.value, 2)} | found
            records.append(record | {"difference": difference, "command": command})
            ours = accuracy(arm[f"test_{cell.metric}"], seeds)
            row += [rounded(cell.value, 2), ours, signed(difference)]
        rows.append(row)
    title = TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}"
    missing = tuple(dict.fromkeys(record["command"] for record in records if record["command"]))
    return Table(
        f"table{number}{protocol.suffix}",
        title,
        header,
        rows,
        _paper_notes(number, complexity) + run_notes(*selection),
        pd.DataFrame(records, dtype=object),
        missing,
        _warning(protocol),
        method=METHOD,
    )


def _paper_notes(number, complexity):
    notes = []
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


def comparison_table(runs, protocol, results):
    """Every attention against none, paired by seed, wherever a protocol has runs.

    The family that corrects a p-value is what was planned: by the paper's claims under its own
    schedule, by the plan of a schedule that has one. Else it is every attention of the paper (on a
    network of one's own, which has no sizes for them, those that were trained) and one's own.
    """
    plan = read_plan(results, protocol)
    selection, rows, note = select(runs, protocol, plan), [], FAMILY["none"]
    if plan:
        note = FAMILY["plan"].format(name=plan.name, seeds=len(plan.seeds))
    claims = []
    if protocol.schedule is None:
        claims, note = (
            read_claims(Path(results) / "claims.yaml", read_paper(results)),
            FAMILY["paper"],
        )
    judged = judge_statements(claims, selection)
    claimed = {(s.data, s.model, s.a, s.b): part for s, part in judged.items() if s.is_gain}
    for (data, model), found in selection.groups().items():
        complete = protocol.schedule and not plan and model in NETWORK_TITLE
        arms = in_order([*found["attention"], "none", *(ATTENTIONS if complete else ())])
        planned = plan.families if plan and model == plan.model and data in plan.data else []
        named = {a for family in planned for a, b in family if b == "none"}
        others = [arm for arm in arms if arm not in {"none", *named}]
        rows += make_rows(selection, [(data, model, "none", None)])
        for family in planned:
            wanted = [(data, model, a, b) for a, b in family]
            rows += in_family(make_rows(selection, wanted), len(plan.seeds))
        others = make_rows(selection, [(data, model, arm, "none") for arm in others])
        if protocol.schedule is None:
            for row in others:
                part = claimed.get((data, model, row.a, row.b))
                p_and_needed = (part.adjusted_p, part.needed) if part else (None, None)
                rows.append(row._replace(adjusted=p_and_needed[0], needed=p_and_needed[1]))
        else:
            rows += others if plan else in_family(others)
    printed = top1(read_paper(results))
    table = rows_table(rows, selection, protocol, plan, printed)
    warning = f"Not the paper's schedule: runs with {protocol.words}." if protocol.schedule else ""
    return table._replace(
        name=f"comparison{protocol.suffix}",
        title=f"Every attention against none: {protocol.words}",
        notes=[note, *table.notes],
        warning=warning,
    )


def build(runs, protocol, results):
    """A protocol's tables: the paper's five (of other protocols than the paper's, those with a
    number), and the comparison of every attention with none where there are runs to compare."""
    selection, paper = select(runs, protocol), read_paper(results)
    complexity = read_complexity(results)
    tables = [paper_table(number, selection, protocol, paper, complexity) for number in TITLES]
    tables = [table for table in tables if protocol == Protocol() or table.filled]
    compared = [comparison_table(runs, protocol, results)] if len(selection.runs) else []
    return tables + compared


def counts(runs):
    """What was run: by data, schedule, precision and other settings; networks, devices and time."""
    header = ["data", "schedule", "precision", "other settings", "networks", "on"]
    header += ["finished", "failed", "time"]
    rows = []
    titles = runs["data"].map(lambda data: DATA_TITLE.get(data, data))
    for names, members in runs.groupby([titles, "schedule", "precision", "deviations"]):
        finished = (members["state"] == "finished").sum()
        settings = (f"{key}={value}" for key, value in json.loads(names[3]).items())
        networks = ", ".join(in_order(members["model"], NETWORK_TITLE))
        devices = "; ".join(sorted(set(members["device"].replace("", "unknown"))))
        row = [*names[:3], ", ".join(settings) or DASH, networks, devices]
        time = elapsed(members["seconds"].sum())
        rows.append([*row, f"{finished}", f"{len(members) - finished}", time])
    return Table("counts", "What was run", header, rows, labels=6)
