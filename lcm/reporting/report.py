"""results/report.html: one self-contained page made from the files in results/ alone."""

import base64
import math
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from lcm.files import write
from lcm.reporting import claims, figures
from lcm.reporting.captions import length_and_seeds
from lcm.reporting.cost import cost_table
from lcm.reporting.paired import in_words
from lcm.reporting.protocol import (
    ARM,
    DATA_TITLE,
    NETWORK_TITLE,
    Protocol,
    protocols,
    read_csv,
    read_plan,
    select,
    title,
)
from lcm.reporting.records import read_records
from lcm.reporting.render import DASH, as_printed, signed
from lcm.reporting.runs import read_runs
from lcm.reporting.statistics import VERDICTS, Comparison
from lcm.reporting.tables import build, counts, read_complexity, read_paper

COUNTS = ("Para", "GFloat", "MACs")  # how the headings of columns with counts begin


class Picture(NamedTuple):
    """A figure: its file name without suffix, what it shows in words, the SVG file as bytes."""

    name: str
    title: str
    svg: bytes


def heading(what, runs, protocol):
    """The two lines above a picture: what it shows, and what was trained."""
    known = runs.dropna(subset="epochs").to_dict("records")
    return f"{what}\n{length_and_seeds(known)}; {protocol.words}"


def curve_pictures(runs, protocol, curves):
    """Learning curves of each network and data set. curves: {run: test accuracy of each epoch}."""
    runs = runs[runs["used"]].assign(
        length=lambda r: [len(curves.get(run, ())) for run in r["run"]]
    )
    for (data, model), found in runs[runs["length"] > 0].groupby(["data", "model"], sort=False):
        own = found[found["length"] == found["length"].max()]
        arms = {
            attention: [curves[run] for run in arm["run"]]
            for attention, arm in own.groupby("attention", sort=False)
        }
        name = title(data, model)
        figure = figures.learning_curves(arms, heading(name, own, protocol))
        words = f"{name}, {protocol.words}: means; dots are single runs, where there are several"
        yield Picture(f"curves{protocol.suffix}-{data}-{model}", words, figures.svg(figure))


def cost_pictures(runs, complexity):
    """What each module adds to the parameters and multiply-accumulates of each network."""
    costs = {"params": "parameters added (%)", "macs": "multiply-accumulates added (%)"}
    rows = pd.concat([complexity.assign(data=""), runs[runs["deviations"] == "{}"]])
    rows = rows.dropna(subset=list(costs)).drop_duplicates(ARM)
    none = rows["attention"] == "none"
    both = rows[~none].merge(rows[none], on=["data", "model"], suffixes=("", "_none"))
    for key in costs:
        both[key] = (100 * (both[key] / both[f"{key}_none"] - 1)).astype(float)
    both["network"] = both["model"].replace(NETWORK_TITLE)
    both = both.drop_duplicates(["network", "attention"])
    if len(both):
        words = "What each module adds to a network: exact counts, no training"
        figure = figures.cost_by_module(costs, both, words)
        yield Picture("cost", f"{words}; further left is cheaper", figures.svg(figure))


def claim_pictures(judged, runs):
    """The forest plot of the paper's claims that have pairs of runs under its schedule."""
    rows = [
        (
            f"Table {s.table}, {title(s.data, s.model)}: {s.a} - {s.b}",
            row.comparison,
            s.paper,
            row.verdict,
        )
        for s, row in judged.items()
        if s.is_gain and row.comparison.n
    ]
    if rows:
        words = heading("Differences that the paper claims", runs[runs["used"]], Protocol())
        picture = figures.svg(figures.forest(rows, words))
        yield Picture("claims", "What the paper claims, and our runs of it", picture)


def forest_rows(records):
    """The rows of a forest plot from the records of a table of `paired.rows_table`."""
    columns, several = list(records), records["against"].dropna().nunique() > 1
    settings = columns[columns.index("model") + 1 : columns.index("attention")]
    for record in records[records["pairs"] > 0].to_dict("records"):
        found = (
            ("mean", "difference"),
            ("low", "low"),
            ("high", "high"),
            ("differences", "differences"),
        )
        ours = Comparison(record["pairs"], **{key: record[column] for key, column in found})
        words = [f"{NETWORK_TITLE.get(record['model'], record['model'])}:"]
        words += [f"{key.rpartition('.')[2]}={record[key]}" for key in settings]
        words += [record["attention"], f"- {record['against']}" if several else ""]
        yield " ".join(filter(None, words)), ours, record.get("paper"), record["verdict"]


def comparison_pictures(table, runs, protocol):
    """Every attention against none on every network, one forest plot for each data set.

    Under the paper's schedule only what the paper does not claim: `claim_pictures` has the others.
    """
    claimed = table.records["verdict"].notna() & (protocol == Protocol())
    for data, own in table.records[~claimed].groupby("data"):
        if rows := list(forest_rows(own)):
            networks = ", ".join(title(data, model) for model in dict.fromkeys(own["model"]))
            single = own["against"].dropna().nunique() == 1
            what = f"{networks}: {'attention minus none' if single else 'differences'}"
            words = heading(what, runs[runs["used"] & (runs["data"] == data)], protocol)
            picture = figures.svg(figures.forest(rows, words))
            name = f"against-none{protocol.suffix}-{data}"
            yield Picture(name, f"{what}, {protocol.words}", picture)


def for_the_page(table):
    """The table with accuracies before counts; a column of equal cells becomes a note."""
    if not table.rows:
        return table
    columns = list(zip(table.header, *table.rows, strict=True))
    kept = [column for column in columns if len(set(column[1:])) > 1 or len(table.rows) == 1]
    kept.sort(key=lambda column: column[0].startswith(COUNTS))
    equal = [column for column in columns if column not in kept]
    equal.sort(key=lambda column: column[0].startswith(COUNTS))
    words = [f"{name} {cell.replace(DASH, '(nothing yet)')}" for name, cell, *_ in equal]
    notes = [f"In every row: {', '.join(dict.fromkeys(words))}."] if words else []
    header, *rows = map(list, zip(*kept, strict=True))
    labels = len([name for name in table.header[: table.labels] if name in header])
    return table._replace(header=header, rows=rows, notes=[*notes, *table.notes], labels=labels)


def printed_counts(paper, complexity):
    """(how many of the paper's counts ours equal, rounded as it rounds; how many it prints)."""
    keys = ["table", "model", "attention"]
    rows = paper.drop_duplicates(["table", "label"]).merge(complexity, on=keys)
    cells = [*zip(rows.params / 1e6, rows.params_m, strict=True)]
    cells += zip(rows.gfloat, rows.gflops, strict=True)
    return sum(as_printed(ours, cell) == cell for ours, cell in cells), len(cells)


def _inline(text):
    """Escaped text in which `code` and **bold** are marked."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)
PAGE.filters |= {
    "inline": _inline,
    "base64": lambda data: base64.b64encode(data).decode(),
    "signed": signed,
}


def make_report(results):
    """(the page as text, its pictures) from a folder of results."""
    results = Path(results)
    runs, paper = read_runs(results / "runs.csv"), read_paper(results)
    complexity = read_complexity(results)
    of_the_paper = claims.read_claims(results / "claims.yaml", paper)
    records, _ = read_records(results / "metrics")
    # an epoch without a number, in other people's runs, is a gap in the curve
    curves = {
        run["run"]: [math.nan if value is None else value for value in epochs["test_top1"]]
        for run, epochs in records
        if run["state"] == "finished"
    }
    paper_runs = select(runs, Protocol())
    judged = claims.judge_statements(of_the_paper, paper_runs)
    pictures = {
        "differences": list(claim_pictures(judged, paper_runs)),
        "curves": [],
        "cost": list(cost_pictures(runs, complexity)),
    }
    tables, methods = [], []
    for protocol in protocols(runs):
        selected = select(runs, protocol, read_plan(results, protocol))
        for table in build(runs, protocol, results):
            tables.append(for_the_page(table))
            methods.append(table.method)
            if "pairs" in table.records:
                pictures["differences"] += comparison_pictures(table, selected, protocol)
        pictures["curves"] += curve_pictures(selected, protocol, curves)
    chances = claims.read_chances(results)
    figure4, speed = results / "figure4.png", results / "benchmark.csv"
    page = PAGE.get_template("report.html.jinja").render(
        claims=[
            (number, claim, [judged[s] for s in claim["statements"]], chances.get(claim["id"]))
            for number, claim in enumerate(claims.judge(of_the_paper, judged, complexity), 1)
        ],
        claims_method=claims.METHOD,
        contests=[for_the_page(table) for table in claims.statement_tables(of_the_paper, judged)],
        cost=cost_table(results, on_card=True),
        counts=for_the_page(counts(runs)),
        figure4=figure4.read_bytes() if figure4.exists() else b"",
        finished=(runs["state"] == "finished").sum(),
        in_words=in_words,
        methods=list(dict.fromkeys(methods)),
        names=NETWORK_TITLE | DATA_TITLE,
        pictures=pictures,
        printed=printed_counts(paper, complexity),
        speed=read_csv(speed) if speed.exists() else [],
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
