"""results/report.html: one self-contained page made from runs.csv, the records and the paper's numbers alone."""

import base64
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from lcm.files import write
from lcm.reporting import claims, figures
from lcm.reporting.paired import measured
from lcm.reporting.protocol import DATA_TITLE, NETWORK_TITLE, protocols, select, title
from lcm.reporting.records import read_records
from lcm.reporting.render import DASH, Table
from lcm.reporting.runs import read_runs
from lcm.reporting.statistics import VERDICTS, Comparison
from lcm.reporting.tables import build, counts, read_complexity, read_paper


class Picture(NamedTuple):
    """A figure of the report: its file name without suffix, what it shows in words, and the SVG file as bytes."""

    name: str
    title: str
    svg: bytes


def curve_pictures(selection, protocol, curves):
    """Learning curves of each network on each data set. `curves`: {run name: test accuracy of each epoch}."""
    for (data, model), runs in selection.groups().items():
        arms = {
            attention: [curves[run] for run in arm["run"] if run in curves]
            for attention, arm in runs.groupby("attention", sort=False)
        }
        lengths = Counter(len(curve) for found in arms.values() for curve in found)
        if not lengths:
            continue
        length = lengths.most_common(1)[0][0]
        arms = {
            attention: [curve for curve in found if len(curve) == length]
            for attention, found in arms.items()
        }
        name = title(data, model)
        figure = figures.learning_curves(
            {a: found for a, found in arms.items() if found}, f"{name}\n{protocol.words}"
        )
        words = f"Learning curves: {name}, {protocol.words}; mean and range over the seeds (their number in brackets)"
        yield Picture(f"curves{protocol.suffix}-{data}-{model}", words, figures.svg(figure))


def cost_pictures(selection, protocol, paper):
    """Accuracy against parameters and against multiply-accumulates, one picture for each data set."""
    paper = paper[paper["metric"] == "top1"].drop_duplicates(["data", "model", "attention"])
    printed = (
        paper.set_index(["data", "model", "attention"])["value"]
        if protocol.schedule is None
        else pd.Series()
    )
    tried = selection.tried()
    points = [
        {
            "data": data,
            "network": NETWORK_TITLE.get(model, model),
            "attention": attention,
            "params": arm["params"].iloc[0] / 1e6,
            "macs": arm["macs"].iloc[0] / 1e6,
            "paper": printed.get((data, model, attention)),
        }
        | measured(arm, tried[data, model, attention]["seed"].nunique())
        for (data, model, attention), arm in selection.arms().items()
        if arm[["params", "macs"]].iloc[0].notna().all()  # other people's runs may not say
    ]
    points = pd.DataFrame(points)
    costs = {
        "params": "parameters (millions)",
        "macs": "multiply-accumulates of one image (millions)",
    }
    for data, own in points.groupby("data") if len(points) else ():
        name = DATA_TITLE.get(data, data)
        own = own.astype({"mean": float, "deviation": float, "paper": float})
        figure = figures.accuracy_against(costs, own, f"{name}\n{protocol.words}")
        words = f"Accuracy against cost: {name}, {protocol.words}; bars: deviation over the seeds"
        yield Picture(f"cost{protocol.suffix}-{data}", words, figures.svg(figure))


def claim_pictures(judged, protocol):
    """The forest plot of each of the paper's tables that has runs."""
    for number in sorted({statement.table for statement in judged}):
        family = {c: part for c, part in judged.items() if c.table == number and c.is_gain}
        if any(part.comparison.n for part in family.values()):
            rows = [
                (f"{title(c.data, c.model)}: {c.a} - {c.b}", part.comparison, c.paper, part.verdict)
                for c, part in family.items()
            ]
            figure = figures.forest(rows, f"Claims of Table {number}\n{protocol.words}")
            words = f"Differences that the paper claims in Table {number}, {protocol.words}: "
            words += "ours with 95 % intervals, and the paper's"
            yield Picture(f"claims{protocol.suffix}-table{number}", words, figures.svg(figure))


def forest_rows(records):
    """The rows of a forest plot from the records of a table of `paired.rows_table`."""
    columns, several = list(records), records["against"].dropna().nunique() > 1
    settings = columns[columns.index("model") + 1 : columns.index("attention")]
    for record in records[records["pairs"] > 0].to_dict("records"):
        facts = {key: record[key] for key in ("low", "high", "differences")}
        ours = Comparison(record["pairs"], record["difference"], **facts)
        label = " ".join(
            [
                f"{NETWORK_TITLE.get(record['model'], record['model'])}:",
                *(f"{key.rpartition('.')[2]}={record[key]}" for key in settings),
                record["attention"],
                *([f"- {record['against']}"] if several else []),
            ]
        )
        yield label, ours, record.get("paper"), record["verdict"]


def comparison_pictures(table, protocol):
    """Every attention against none on every network, one forest plot for each data set."""
    for data, records in table.records.groupby("data"):
        if rows := list(forest_rows(records)):
            name = DATA_TITLE.get(data, data)
            figure = figures.forest(
                rows,
                f"{name}: differences\n{protocol.words}"
                if any(paper is not None for _, _, paper, _ in rows)
                else f"{name}: attention minus none\n{protocol.words}",
            )
            words = f"Each attention minus none on {name}, {protocol.words}: each pair, their mean, 95 % intervals"
            yield Picture(f"against-none{protocol.suffix}-{data}", words, figures.svg(figure))


def runs_table(runs):
    """What every run reached, and where; runs.csv has more columns."""
    columns = [
        "run",
        "schedule",
        "precision",
        "deviations",
        "state",
        "test_top1",
        "test_top5",
        "train_loss",
        "seconds",
    ]
    columns += ["device", "torch", "commit", "dirty", "start", "message"]
    cells = runs[columns].round({"train_loss": 4})
    cells["commit"] = runs["commit"].str.replace(
        r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", regex=True
    )
    cells = cells.astype(object).where(cells.notna(), DASH).astype(str)
    return Table("runs", "Runs", columns, cells.to_numpy().tolist(), labels=5)


def _inline(text):
    """Escaped text in which `code` and **bold** are marked."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


def _template():
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "inline": _inline,
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    return environment.get_template("report.html.jinja")


def make_report(results):
    """(the page as text, its pictures) from a folder of results."""
    results = Path(results)
    runs, paper = read_runs(results / "runs.csv"), read_paper(results)
    of_the_paper = claims.read_claims(results / "claims.yaml", paper)
    records, _ = read_records(results / "metrics")
    # an epoch without a number, in other people's runs, is a gap in the curve
    curves = {
        run["run"]: [math.nan if value is None else value for value in epochs["test_top1"]]
        for run, epochs in records
        if run["state"] == "finished"
    }
    pictures = {"claims": [], "against": [], "curves": [], "cost": []}
    tables, judged_claims, short = [], [], []
    printed = set()  # methods, each once; notes are facts about runs and stand below each table
    for protocol in protocols(runs):
        selection = select(runs, protocol)
        for table in build(runs, protocol, results):
            method = [] if table.method in printed else [table.method]
            tables.append((table, method + table.notes))
            printed.add(table.method)
            if "pairs" in table.records:
                pictures["against"] += comparison_pictures(table, protocol)
        pictures["curves"] += curve_pictures(selection, protocol, curves)
        pictures["cost"] += cost_pictures(selection, protocol, paper)
        if protocol.schedule is None:
            judged = claims.judge_statements(of_the_paper, selection)
            pictures["claims"] += claim_pictures(judged, protocol)
            verdicts = claims.judge(of_the_paper, judged, read_complexity(results))
            short.append(claims.claims_in_short(verdicts))
            chances = claims.read_chances(results)
            summary = claims.summary_table(verdicts, protocol, chances)
            judged_claims.append((summary, claims.statement_tables(of_the_paper, judged)))
    page = _template().render(
        claims=judged_claims,
        claims_in_short=short[0],
        claims_method=claims.METHOD,
        counts=counts(runs),
        finished=(runs["state"] == "finished").sum(),
        pictures=pictures,
        runs=runs_table(runs),
        tables=tables,
        verdicts=VERDICTS,
    )
    return page, [one for found in pictures.values() for one in found]


def write_report(results):
    """Write report.html and figures/*.svg; returns the number of figures."""
    page, pictures = make_report(results)
    write(Path(results) / "report.html", page)
    for picture in pictures:
        write(Path(results) / "figures" / f"{picture.name}.svg", picture.svg)
    return len(pictures)
