"""results/report.html: one page, self-contained, made from runs.csv, the records and the paper's numbers alone."""

import base64
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from lcm.files import write
from lcm.reporting import figures
from lcm.reporting.claims import (
    WORDS,
    claims_in_short,
    contest_tables,
    cost_tables,
    judge,
    judge_contests,
    read_claims,
)
from lcm.reporting.comparison import measured
from lcm.reporting.protocol import DATA_TITLE, NETWORK_TITLE, in_order, protocols, select, title
from lcm.reporting.records import read_records, record_name
from lcm.reporting.render import DASH, Table, accuracy, rounded
from lcm.reporting.runs import read_runs
from lcm.reporting.statistics import VERDICTS, Comparison
from lcm.reporting.tables import build, counts, read_complexity, read_paper


class Picture(NamedTuple):
    """A figure of the report: the file name without suffix, what it shows in words, its SVG and its PNG."""

    name: str
    title: str
    svg: bytes
    png: bytes


def picture(name, words, figure):
    """The Picture of a matplotlib figure."""
    return Picture(name, words, figures.svg(figure), figures.png(figure))


def curve_pictures(selection, protocol, curves):
    """Learning curves of each network on each data set. `curves`: {run name: test accuracies by epoch}."""
    for (data, model), runs in selection.groups().items():
        known = {
            attention: [curves[run] for run in arm["run"] if run in curves]
            for attention, arm in runs.groupby("attention", sort=False)
        }
        lengths = Counter(len(curve) for found in known.values() for curve in found)
        if not lengths:
            continue
        length = lengths.most_common(1)[0][0]
        known = {attention: [curve for curve in found if len(curve) == length] for attention, found in known.items()}
        name = title(data, model)
        figure = figures.learning_curves({a: found for a, found in known.items() if found}, f"{name}\n{protocol.words}")
        words = f"Learning curves: {name}, {protocol.words}; mean and range over the seeds (their number in brackets)"
        yield picture(f"curves{protocol.suffix}-{data}-{model}", words, figure)


def cost_pictures(selection, protocol, paper):
    """Accuracy against parameters and against multiply-accumulates, one picture for each data set."""
    paper = paper[paper["metric"] == "top1"].drop_duplicates(["data", "model", "attention"])
    printed = paper.set_index(["data", "model", "attention"])["value"] if protocol.schedule is None else pd.Series()
    points = pd.DataFrame(
        {
            "data": data,
            "network": NETWORK_TITLE.get(model, model),
            "attention": attention,
            "params": arm["params"].iloc[0] / 1e6,
            "macs": arm["macs"].iloc[0] / 1e6,
            "paper": printed.get((data, model, attention)),
        }
        | measured(arm)
        for (data, model, attention), arm in selection.arms().items()
    )
    costs = {"params": "parameters (millions)", "macs": "multiply-accumulates of one image (millions)"}
    for data, own in points.groupby("data") if len(points) else ():
        name = DATA_TITLE.get(data, data)
        own = own.astype({"mean": float, "deviation": float, "paper": float})
        figure = figures.accuracy_against(costs, own, f"{name}\n{protocol.words}")
        words = f"Accuracy against cost: {name}, {protocol.words}; bars: deviation over the seeds"
        yield picture(f"cost{protocol.suffix}-{data}", words, figure)


def claim_pictures(judged, protocol):
    """The forest plot of each of the paper's tables that has runs."""
    for number in sorted({contest.table for contest in judged}):
        family = {c: part for c, part in judged.items() if c.table == number and not c.margin}
        if any(part.comparison.n for part in family.values()):
            rows = [
                (f"{title(c.data, c.model)}: {c.a} - {c.b}", part.comparison, c.paper, part.verdict)
                for c, part in family.items()
            ]
            figure = figures.forest(rows, f"Claims of Table {number}\n{protocol.words}")
            words = f"Differences that the paper claims in Table {number}, {protocol.words}: "
            words += "ours with 95 % intervals, and the paper's"
            yield picture(f"claims{protocol.suffix}-table{number}", words, figure)


def forest_rows(records):
    """The lines of a forest plot from the records of a comparison's table."""
    for record in records[records["pairs"] > 0].itertuples():
        facts = {key: getattr(record, key) for key in ("low", "high", "differences")}
        ours = Comparison(record.pairs, record.difference, **facts)
        yield f"{NETWORK_TITLE.get(record.model, record.model)}: {record.attention}", ours, None, record.verdict


def comparison_pictures(table, protocol):
    """Every attention against none on every network, one forest for each data set."""
    for data, records in table.records.groupby("data"):
        if rows := list(forest_rows(records)):
            name = DATA_TITLE.get(data, data)
            figure = figures.forest(rows, f"{name}: attention minus none\n{protocol.words}")
            words = f"Each attention minus none on {name}, {protocol.words}: each pair, their mean, 95 % intervals"
            yield picture(f"against-none{protocol.suffix}-{data}", words, figure)


def _facts(run):
    """A run's facts beside its config: {title: text}."""
    facts = {
        "run": run.run.rsplit("/", 1)[-1],
        "state": run.state,
        "top-1": rounded(run.test_top1, 2),
        "top-5": rounded(run.test_top5, 2),
        "best on test": "" if pd.isna(run.best_epoch) else f"{run.best_test_top1:.2f} (epoch {run.best_epoch})",
        "train loss": rounded(run.train_loss, 4),
        "hours": rounded(run.seconds / 3600, 2),
        "on": run.device,
        "torch": run.torch,
        "python": run.python,
        "commit": run.commit[:10] + (" + changes" if run.dirty is True else ""),
        "data files": run.data_fingerprint[:10] + (" not verified" if run.data_verified is False else ""),
        "start": run.start,
        "message": run.message,
    }
    return {name: fact or DASH for name, fact in facts.items()}


def run_groups(runs, configs):
    """(what was run, its accuracy, a Table of its runs' facts, their config) of all runs that differ in the seed alone."""
    for config in configs.values():
        config.pop("seed", None)
    shown = runs["run"].map(lambda run: json.dumps(configs.get(run, {}), indent=1, sort_keys=True))
    keys = ["data", "model", "attention", "schedule", "precision", "config"]
    groups = dict(list(runs.assign(config=shown).groupby(keys)))
    models = in_order(runs["model"], NETWORK_TITLE)
    for group in sorted(groups, key=lambda group: (group[0], models.index(group[1]), group[2:])):
        members, (data, model, attention, schedule, precision, config) = groups[group], group
        deviations = json.loads(members["deviations"].iloc[0]).items()
        name = f"{data}/{model}/{attention}, schedule={schedule}, precision={precision}"
        name += "".join(f", {key}={value}" for key, value in deviations)
        facts = [_facts(run) for run in members.itertuples()]
        table = Table("facts", "Runs", list(facts[0]), [list(fact.values()) for fact in facts], labels=len(facts[0]))
        yield name, accuracy(members["test_top1"].dropna()), table, config if config != "{}" else ""


def _inline(text):
    """Escaped text in which `code` and **bold** are marked."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text))


def _template():
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"inline": _inline, "base64": lambda data: base64.b64encode(data).decode()}
    return environment.get_template("report.html.jinja")


def make_report(results):
    """(the page as text, its pictures) from a folder of results."""
    results = Path(results)
    runs, paper, complexity = read_runs(results / "runs.csv"), read_paper(results), read_complexity(results)
    claims = read_claims(results / "claims.yaml")
    wanted = set(runs["run"].map(record_name))
    records = [one for name, one in read_records(results / "metrics")[0].items() if name in wanted]
    configs = {run["run"]: dict(run["config"]) for run, _ in records}
    curves = {run["run"]: epochs.column("test_top1") for run, epochs in records if run["state"] == "finished"}
    pictures, tables, told = {"claims": [], "against": [], "curves": [], "cost": []}, [], set()
    judged_claims = []
    for protocol in protocols(runs):
        selection = select(runs, protocol)
        for table in build(runs, protocol, results):
            tables.append((table, [note for note in table.notes if note not in told]))
            told.update(table.notes)  # a note that an earlier table had is not repeated
            if "pairs" in table.records:
                pictures["against"] += comparison_pictures(table, protocol)
        pictures["curves"] += curve_pictures(selection, protocol, curves)
        pictures["cost"] += cost_pictures(selection, protocol, paper)
        if protocol.schedule is None:
            judged = judge_contests(claims, runs, protocol)
            pictures["claims"] += claim_pictures(judged, protocol)
            views = contest_tables(claims, judged), cost_tables(claims, complexity)
            judged_claims.append((protocol, judge(claims, judged, complexity), *views))
    pictures["claims"] += pictures.pop("against")
    page = _template().render(
        claims=judged_claims,
        claims_in_short=claims_in_short(judged_claims[0][1]),
        claim_words=WORDS,
        counts=counts(runs),
        finished=(runs["state"] == "finished").sum(),
        pictures=pictures,
        runs=list(run_groups(runs, configs)),
        tables=tables,
        verdicts=VERDICTS,
    )
    return page, [one for found in pictures.values() for one in found]


def write_report(results):
    """Write report.html and figures/*.svg, *.png, and delete figures that an earlier report has drawn. Returns their number."""
    results = Path(results)
    page, pictures = make_report(results)
    write(results / "report.html", page)
    for one in pictures:
        write(results / "figures" / f"{one.name}.svg", one.svg)
        write(results / "figures" / f"{one.name}.png", one.png)
    made = {one.name for one in pictures}
    for file in (results / "figures").glob("*"):
        drawn = file.suffix in (".svg", ".png") and file.stem not in made
        if drawn and figures.MADE_BY.encode() in file.read_bytes():
            file.unlink()
    return len(pictures)
