"""results/report.html: one self-contained page made from the files in results/ alone."""

import base64
import math
import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from lcm.files import write
from lcm.reporting import claims, figures
from lcm.reporting.captions import length_and_seeds
from lcm.reporting.paired import printed_difference, verdict_words
from lcm.reporting.protocol import (
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
from lcm.reporting.render import DASH, as_printed, p_value, signed
from lcm.reporting.runs import read_runs
from lcm.reporting.statistics import VERDICTS
from lcm.reporting.tables import build, counts, read_complexity, read_paper, top1

COUNTS = ("Para", "GFloat", "MACs")  # how the headings of columns with counts begin


def heading(what, runs, protocol):
    """The two lines above a picture: what it shows, and what was trained."""
    trained = length_and_seeds(runs.dropna(subset="epochs").to_dict("records"))
    return f"{what}\n{trained}; {protocol.words}"


def curve_pictures(runs, protocol, curves):
    """Learning curves of each network and data set. curves: {run: test accuracy of each epoch}."""
    runs = runs[runs["run"].isin(curves)]
    runs = runs.assign(length=[len(curves[run]) for run in runs["run"]])
    for (data, model), found in runs.groupby(["data", "model"], sort=False):
        # Curves of several lengths have no mean: the longest runs are shown.
        own = found[found["length"] == found["length"].max()]
        arms = {
            attention: [curves[run] for run in arm["run"]]
            for attention, arm in own.groupby("attention", sort=False)
        }
        name = title(data, model)
        words = f"{name}, {protocol.words}: means; dots are single runs, where there are several"
        figure = figures.learning_curves(arms, heading(name, own, protocol))
        yield f"curves{protocol.suffix}-{data}-{model}", words, figure


def claim_pictures(judged, runs):
    """The forest plot of the paper's claims that have pairs of runs under its schedule."""
    # Gains alone: a statement of near equality has two bounds, and the figure marks zero.
    rows = {
        f"Table {s.table}, {title(s.data, s.model)}: {s.a} - {s.b}": (row, s.paper)
        for s, row in judged.items()
        if s.is_gain and row.comparison.n
    }
    if rows:
        words = heading("Differences that the paper claims", runs, Protocol())
        yield "claims", "What the paper claims, and our runs of it", figures.forest(rows, words)


def forest_rows(rows, paper):
    """{label: (Row, the paper's difference or None)} of those Rows that have pairs."""
    rows = [row for row in rows if row.comparison.n]
    several = len({row.b for row in rows}) > 1
    named = len({row.data for row in rows}) > 1
    found = {}
    for row in rows:
        settings = [f"{key.rpartition('.')[2]}={value}" for key, value in row.settings.items()]
        arms = f"{row.a} - {row.b}" if several else row.a
        network = title(row.data, row.model) if named else NETWORK_TITLE.get(row.model, row.model)
        found[" ".join([f"{network}:", *settings, arms])] = row, printed_difference(row, paper)
    return found


def comparison_pictures(rows, runs, protocol, paper):
    """Every attention against none on every network, one forest plot for each data set.

    Under the paper's schedule only what the paper does not claim: `claim_pictures` has the others.
    """
    # Under the paper's schedule `needed` is set only where the paper makes a claim.
    shown = [row for row in rows if protocol != Protocol() or not row.needed]
    for data in dict.fromkeys(row.data for row in shown):
        own = [row for row in shown if row.data == data]
        if forest := forest_rows(own, paper):
            networks = ", ".join(dict.fromkeys(title(data, row.model) for row in own))
            single = len({row.b for row in own if row.b}) == 1
            what = f"{networks}: {'attention minus none' if single else 'differences'}"
            figure = figures.forest(forest, heading(what, runs[runs["data"] == data], protocol))
            yield f"against-none{protocol.suffix}-{data}", f"{what}, {protocol.words}", figure


def for_the_page(table):
    """The table with accuracies before counts; a column of equal cells becomes a note."""
    # The sort is stable: counts move behind the rest, and either part keeps its order.
    columns = sorted(
        zip(table.header, *table.rows, strict=True), key=lambda column: column[0].startswith(COUNTS)
    )
    equal = [column for column in columns if len(table.rows) > 1 and len(set(column[1:])) == 1]
    # An empty column of differences gets no note: that of `ours` says that nothing was run.
    words = [
        f"{name} {cell.replace(DASH, '(nothing yet)')}"
        for name, cell, *_ in equal
        if name != "ours - paper"
    ]
    notes = [f"In every row: {', '.join(dict.fromkeys(words))}."] if words else []
    header, *rows = zip(*(column for column in columns if column not in equal), strict=True)
    labels = len([name for name in table.header[: table.labels] if name in header])
    return table._replace(header=header, rows=rows, notes=[*notes, *table.notes], labels=labels)


def printed_counts(paper, complexity):
    """(how many of the paper's counts ours equal, rounded as it rounds; how many it prints)."""
    # paper.csv has a line for each accuracy of a row, with the row's counts on every line.
    rows = paper.drop_duplicates(["table", "label"])
    rows = rows.merge(complexity, on=["table", "model", "attention"])
    cells = zip([*(rows.params / 1e6), *rows.gfloat], [*rows.params_m, *rows.gflops], strict=True)
    return sum(as_printed(ours, cell) == cell for ours, cell in cells), 2 * len(rows)


def _inline(text):
    """Escaped text in which `code` and **bold** are marked."""
    # Escaped before it is marked: no other tags than these can be in it.
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


# By default Jinja escapes nothing, and prints nothing for a name that it does not know.
PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)
PAGE.filters |= {
    "inline": _inline,
    "base64": lambda data: base64.b64encode(data).decode(),
    "p_value": p_value,
    "signed": signed,
}


def make_report(results):
    """(the page as text, {name: the SVG file of a picture}) from a folder of results."""
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
        "differences": [*claim_pictures(judged, paper_runs[paper_runs["used"]])],
        "curves": [],
    }
    tables = []
    for protocol in protocols(runs):
        plan = read_plan(results, protocol)
        used = select(runs, protocol, plan).query("used")
        # As in the tables: the paper's differences stand beside planned comparisons alone.
        printed = top1(paper) if plan else {}
        for table in build(runs, protocol, results):
            tables.append(for_the_page(table))
            pictures["differences"] += comparison_pictures(table.compared, used, protocol, printed)
        pictures["curves"] += curve_pictures(used, protocol, curves)
    # Drawn once: the page holds the bytes of the files in figures/.
    pictures = {
        kind: {name: (words, figures.as_bytes(figure, ".svg")) for name, words, figure in found}
        for kind, found in pictures.items()
    }
    chances = claims.read_chances(results)
    figure4, speed = results / "figure4.png", results / "benchmark.csv"
    page = PAGE.get_template("report.html.jinja").render(
        claims=[
            (number, claim, [judged[s] for s in claim["statements"]], chances.get(claim["id"]))
            for number, claim in enumerate(claims.judge(of_the_paper, judged, complexity), 1)
        ],
        claims_method=claims.METHOD,
        contests=[for_the_page(table) for table in claims.statement_tables(of_the_paper, judged)],
        counts=for_the_page(counts(runs)),
        figure4=figure4.read_bytes() if figure4.exists() else b"",
        finished=(runs["state"] == "finished").sum(),
        verdict_words=verdict_words,
        names=NETWORK_TITLE | DATA_TITLE,
        pictures=pictures,
        printed=printed_counts(paper, complexity),
        speed=read_csv(speed) if speed.exists() else [],
        tables=tables,
        verdicts=VERDICTS,
    )
    return page, {name: svg for found in pictures.values() for name, (_, svg) in found.items()}


def write_report(results):
    """Write report.html and figures/*.svg; returns the number of figures."""
    page, files = make_report(results)
    write(Path(results) / "report.html", page)
    for name, svg in files.items():
        write(Path(results) / "figures" / f"{name}.svg", svg)
    return len(files)
