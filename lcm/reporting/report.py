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
from lcm.reporting.cost import cost_block
from lcm.reporting.paired import in_words
from lcm.reporting.protocol import (
    DATA_TITLE,
    NETWORK_TITLE,
    Protocol,
    protocols,
    read_csv,
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


def curve_pictures(selection, protocol, curves):
    """Learning curves of each network and data set. curves: {run: test accuracy of each epoch}."""
    for (data, model), runs in selection.groups().items():
        lengths = [len(curves.get(run, ())) for run in runs["run"]]
        if not any(lengths):
            continue
        own = runs[[length == max(lengths) for length in lengths]]
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
    rows = rows.dropna(subset=list(costs)).drop_duplicates(["data", "model", "attention"])
    none = rows["attention"] == "none"
    both = rows[~none].merge(rows[none], on=["data", "model"], suffixes=("", "_none"))
    for key in costs:
        both[key] = (100 * (both[key] / both[f"{key}_none"] - 1)).astype(float)
    both["network"] = [NETWORK_TITLE.get(model, model) for model in both["model"]]
    both = both.drop_duplicates(["network", "attention"])
    if len(both):
        words = "What each module adds to a network: exact counts, no training"
        figure = figures.cost_by_module(costs, both, words)
        yield Picture("cost", f"{words}; further left is cheaper", figures.svg(figure))


def claim_pictures(judged, runs):
    """The forest plot of the paper's claims that have pairs of runs under its schedule."""
    rows = [
        (
            f"Table {c.table}, {title(c.data, c.model)}: {c.a} - {c.b}",
            part.comparison,
            c.paper,
            part.verdict,
        )
        for c, part in judged.items()
        if c.is_gain and part.comparison.n
    ]
    if rows:
        figure = figures.forest(
            rows, heading("Differences that the paper claims", runs, Protocol())
        )
        yield Picture("claims", "What the paper claims, and our runs of it", figures.svg(figure))


def forest_rows(records):
    """The rows of a forest plot from the records of a table of `paired.rows_table`."""
    columns, several = list(records), records["against"].dropna().nunique() > 1
    settings = columns[columns.index("model") + 1 : columns.index("attention")]
    for record in records[records["pairs"] > 0].to_dict("records"):
        ours = Comparison(
            n=record["pairs"],
            mean=record["difference"],
            low=record["low"],
            high=record["high"],
            differences=record["differences"],
        )
        label = " ".join(
            [
                f"{NETWORK_TITLE.get(record['model'], record['model'])}:",
                *(f"{key.rpartition('.')[2]}={record[key]}" for key in settings),
                record["attention"],
                *([f"- {record['against']}"] if several else []),
            ]
        )
        yield label, ours, record.get("paper"), record["verdict"]


def comparison_pictures(table, selection, protocol):
    """Every attention against none on every network, one forest plot for each data set.

    Under the paper's schedule only what the paper does not claim: `claim_pictures` has the others.
    """
    claimed = table.records["verdict"].notna() & (protocol == Protocol())
    for data, own in table.records[~claimed].groupby("data"):
        if rows := list(forest_rows(own)):
            networks = ", ".join(title(data, model) for model in dict.fromkeys(own["model"]))
            single = own["against"].dropna().nunique() == 1
            what = f"{networks}: {'attention minus none' if single else 'differences'}"
            runs = selection.runs[selection.runs["data"] == data]
            figure = figures.forest(rows, heading(what, runs, protocol))
            yield Picture(
                name=f"against-none{protocol.suffix}-{data}",
                title=f"{what}, {protocol.words}",
                svg=figures.svg(figure),
            )


def for_the_page(table):
    """The table with accuracies before counts; a column of equal cells becomes a note."""
    cells = [{row[i] for row in table.rows} for i in range(len(table.header))]
    order = sorted(range(len(cells)), key=lambda i: table.header[i].startswith(COUNTS))
    kept = [i for i in order if len(cells[i]) > 1 or len(table.rows) == 1]
    equal = [
        f"{table.header[i]} {table.rows[0][i].replace(DASH, '(nothing yet)')}"
        for i in order
        if table.rows and i not in kept
    ]
    notes = [f"In every row: {', '.join(dict.fromkeys(equal))}."] if equal else []
    return table._replace(
        header=[table.header[i] for i in kept],
        rows=[[row[i] for i in kept] for row in table.rows],
        notes=[*notes, *table.notes],
        labels=sum(i < table.labels for i in kept),
    )


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


def _template():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "inline": _inline,
        "base64": lambda data: base64.b64encode(data).decode(),
        "signed": signed,
    }
    return environment.get_template("report.html.jinja")


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
    verdicts = claims.judge(of_the_paper, judged, complexity)
    pictures = {
        "differences": list(claim_pictures(judged, paper_runs.runs)),
        "curves": [],
        "cost": list(cost_pictures(runs, complexity)),
    }
    tables, methods = [], []
    for protocol in protocols(runs):
        selection = select(runs, protocol)
        for table in build(runs, protocol, results):
            tables.append(for_the_page(table))
            methods.append(table.method)
            if "pairs" in table.records:
                pictures["differences"] += comparison_pictures(table, selection, protocol)
        pictures["curves"] += curve_pictures(selection, protocol, curves)
    chances = claims.read_chances(results)
    figure4, speed = results / "figure4.png", results / "benchmark.csv"
    page = _template().render(
        claims=[
            (
                number,
                result,
                [judged[s] for s in result.claim.statements],
                chances.get(result.claim.id),
            )
            for number, result in enumerate(verdicts, 1)
        ],
        claims_method=claims.METHOD,
        contests=[for_the_page(table) for table in claims.statement_tables(of_the_paper, judged)],
        cost=cost_block(results),
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
