"""results/report.html: one page, self-contained, made from runs.csv, the records and the paper's numbers alone."""

import base64
import html
import json
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from lcm.files import write
from lcm.reporting import plots
from lcm.reporting.claims import (
    WORDS,
    claims_in_short,
    contest_table,
    cost_rows,
    cost_table,
    judge,
    judge_contests,
    read_claims,
)
from lcm.reporting.collect import read_records, read_runs, record_name
from lcm.reporting.render import DASH, Table, accuracy, missing_words, rounded
from lcm.reporting.selection import DATA_TITLE, NETWORK_TITLE, Protocol, network_place, protocols, select
from lcm.reporting.tables import build, counts, read_complexity, read_paper

STYLE = """
:root{--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--wash:#f6f8fa;--link:#0550ae}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:16px;color:var(--ink);background:#fff;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0 .6em}h2{margin:2em 0 .5em;padding-bottom:.2em;
 border-bottom:1px solid var(--line)}h3{margin:1.6em 0 .4em;font-size:1.05rem}
a{color:var(--link)}nav a{display:inline-block;margin:0 1em .4em 0}
.note{color:var(--soft);font-size:.9rem}.warn{border-left:4px solid #bf8700;background:#fff8c5;padding:.6em .9em;margin:.8em 0}
.stop{border-left:4px solid #cf222e;background:#ffebe9;padding:.6em .9em;margin:.8em 0}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px;margin:.6em 0}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;white-space:nowrap;min-width:100%}
th,td{padding:.3em .6em;text-align:right;border-bottom:1px solid var(--line)}
th{background:var(--wash);vertical-align:bottom;white-space:normal;overflow-wrap:normal;min-width:4.5em}
.l{text-align:left}th.l,td.l{min-width:0}
td:first-child,th:first-child{position:sticky;left:0;background:#fff}th:first-child{background:var(--wash)}
tr.rule td{border-top:2px solid var(--soft)}tr:last-child td{border-bottom:0}td.ours{font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:16px;align-items:start}
figure{margin:0}figure img{width:100%;height:auto;display:block;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:.8rem;color:var(--soft)}
article{border:1px solid var(--line);border-radius:6px;padding:.7em .9em;margin:.7em 0}
article p{margin:.25em 0}blockquote{margin:.2em 0 .5em;font-style:italic}
.word{font-size:.8rem;font-weight:600;border-radius:1em;padding:.1em .7em;white-space:nowrap;background:#eaeef2;color:var(--ink)}
.supported{background:#1a7f37;color:#fff}.contradicted{background:#cf222e;color:#fff}.inconclusive{background:#0550ae;color:#fff}
details{margin:.5em 0}summary{cursor:pointer}details>*:not(summary){margin-left:.6em}
pre{background:var(--wash);border-radius:6px;padding:.7em;overflow-x:auto;font-size:.8rem;white-space:pre}
code{font-size:.9em;background:var(--wash);border-radius:4px;padding:.1em .3em}pre code{padding:0;background:none}
dt{font-weight:600}
"""


class Picture(NamedTuple):
    """A figure of the report: the file name without suffix, what it shows in words, its SVG and its PNG."""

    name: str
    title: str
    svg: bytes
    png: bytes


def _inline(text):
    """Escaped text in which `code` and **bold** are marked."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def _word(verdict):
    return f'<span class="word {verdict}">{verdict}</span>' if verdict else '<span class="word">not judged</span>'


def table_html(table):
    """A table in a box of its own that scrolls sideways on a narrow screen."""
    left = table.labels
    head = "".join(f"<th{' class=l' if i < left else ''}>{_inline(cell)}</th>" for i, cell in enumerate(table.header))
    rows = []
    for index, row in enumerate(table.rows):
        cells = []
        for i, cell in enumerate(row):
            mark = " class=l" if i < left else " class=ours" if "±" in cell else ""
            known = cell in ("supported", "contradicted", "inconclusive", "untestable")
            cells.append(f"<td{mark}>{_word(cell) if known else _inline(cell)}</td>")
        rows.append(f"<tr{' class=rule' if index in table.groups else ''}>{''.join(cells)}</tr>")
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _details(summary, *body, opened=False):
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{''.join(body)}</details>"


def _commands(table):
    if not table.missing:
        return ""
    listing = html.escape("\n".join(table.missing))
    return _details(_inline(missing_words(table)), f"<pre><code>{listing}</code></pre>")


def _table_section(table, told):
    """A table with its notes; a note that an earlier table had (`told`, which grows) is not told again."""
    warning = f'<p class="warn"><b>{_inline(table.warning)}</b></p>' if table.warning else ""
    notes = "".join(f'<p class="note">{_inline(note)}</p>' for note in table.notes if note not in told)
    told.update(table.notes)
    return f'<h3 id="{table.name}">{_inline(table.title)}</h3>{warning}{table_html(table)}{_commands(table)}{notes}'


def curve_pictures(selection, protocol, curves):
    """Learning curves of each network on each data set. `curves`: {run name: test accuracies by epoch}."""
    for (data, model), arms in selection.groups().items():
        known = {a: [curves[run.run] for run in arm.values() if run.run in curves] for a, arm in arms.items()}
        lengths = Counter(len(curve) for runs in known.values() for curve in runs)
        if not lengths:
            continue
        length = lengths.most_common(1)[0][0]
        known = {a: [curve for curve in runs if len(curve) == length] for a, runs in known.items()}
        title = f"{NETWORK_TITLE.get(model, model)} on {DATA_TITLE.get(data, data)}"
        figure = plots.learning_curves({a: runs for a, runs in known.items() if runs}, f"{title}\n{protocol.words}")
        words = f"Learning curves: {title}, {protocol.words}; mean and range over the seeds (their number in brackets)"
        yield Picture(f"curves{protocol.suffix}-{data}-{model}", words, plots.svg(figure), plots.png(figure))


def cost_pictures(selection, protocol, paper):
    """Accuracy against parameters and against multiply-accumulates, one picture for each data set."""
    printed = {(p["data"], p["model"], p["attention"]): p["value"] for p in paper if p["metric"] == "top1"}
    by_data = defaultdict(list)
    for (data, model), arms in selection.groups().items():
        for attention, arm in arms.items():
            values = [run.test_top1 for run in arm.values()]
            run = next(iter(arm.values()))
            deviation = statistics.stdev(values) if len(values) > 1 else None
            told = printed.get((data, model, attention)) if protocol.schedule is None else None
            name = NETWORK_TITLE.get(model, model)
            by_data[data].append((name, attention, run.params, run.macs, statistics.fmean(values), deviation, told))
    for data, rows in by_data.items():
        title = f"{DATA_TITLE.get(data, data)}\n{protocol.words}"
        axes = {"parameters (millions)": [], "multiply-accumulates of one image (millions)": []}
        for name, attention, params, macs, *accuracies in rows:
            for points, cost in zip(axes.values(), (params, macs), strict=True):
                points.append((name, attention, cost / 1e6, *accuracies))
        figure = plots.accuracy_against(axes, title)
        words = f"Accuracy against cost: {DATA_TITLE.get(data, data)}, {protocol.words}; bars: deviation over the seeds"
        yield Picture(f"cost{protocol.suffix}-{data}", words, plots.svg(figure), plots.png(figure))


def claim_pictures(judged, protocol):
    """The forest plot of each of the paper's tables that has runs."""
    for number in sorted({contest.table for contest in judged}):
        family = [j for c, j in judged.items() if c.table == number and not c.margin]
        if not any(j.comparison.n for j in family):
            continue
        rows = [
            (
                f"{NETWORK_TITLE.get(j.contest.model, j.contest.model)}, {DATA_TITLE[j.contest.data]}:"
                f" {j.contest.a} - {j.contest.b}",
                j.comparison.mean,
                j.comparison.low,
                j.comparison.high,
                j.comparison.differences,
                j.contest.paper,
                j.verdict if j.comparison.n else None,
            )
            for j in family
        ]
        figure = plots.forest(rows, f"Claims of Table {number}\n{protocol.words}")
        words = f"Differences that the paper claims in Table {number}, {protocol.words}: ours with 95 % intervals, and the paper's"
        yield Picture(f"claims{protocol.suffix}-table{number}", words, plots.svg(figure), plots.png(figure))


def comparison_pictures(table, protocol):
    """Every attention against none on every network, one forest for each data set."""
    by_data = defaultdict(list)
    for r in table.records:
        if r["pairs"]:
            label = f"{NETWORK_TITLE.get(r['model'], r['model'])}: {r['attention']}"
            by_data[r["data"]].append(
                (label, r["difference"], r["low"], r["high"], r["differences"], None, r["verdict"])
            )
    for data, rows in by_data.items():
        title = DATA_TITLE.get(data, data)
        figure = plots.forest(rows, f"{title}: attention minus none\n{protocol.words}")
        words = f"Each attention minus none on {title}, {protocol.words}: each pair, their mean, 95 % intervals"
        yield Picture(f"against-none{protocol.suffix}-{data}", words, plots.svg(figure), plots.png(figure))


def _gallery(pictures):
    figures = []
    for picture in pictures:
        source = base64.b64encode(picture.svg).decode()
        words = html.escape(picture.title)
        figures.append(
            f'<figure><img src="data:image/svg+xml;base64,{source}" alt="{words}" loading="lazy">'
            f"<figcaption>{words}. <code>figures/{picture.name}</code></figcaption></figure>"
        )
    return f'<div class="grid">{"".join(figures)}</div>' if figures else '<p class="note">Nothing was run yet.</p>'


def _claims_section(claims, judged, results, complexity):
    parts = []
    for index, result in enumerate(results, 1):
        claim = result.claim
        paper = f"<p>The paper's own numbers: {_inline(result.paper)}.</p>" if result.verdict else ""
        ours = {"cost": "Our counts", "not_judged": "Why not"}.get(claim.holds_if, "Our runs")
        note = f'<p class="note">{_inline(claim.note)}</p>' if claim.note and claim.holds_if != "not_judged" else ""
        parts.append(
            f'<article id="claim-{claim.id}"><p>{_word(result.verdict)} <b>{index}.</b> '
            f'<span class="note">{_inline(claim.place)}</span></p><blockquote>“{_inline(claim.quote.strip())}”</blockquote>'
            f"{paper}<p>{ours}: {_inline(result.ours.rstrip('.'))}.</p>{note}</article>"
        )
    parts.append(f'<p class="note">{_inline(WORDS)}</p>')
    for number in sorted({contest.table for contest in judged}):
        table = contest_table(number, claims, judged)
        filled = sum(1 for record in table.records if record["n"])
        notes = "".join(f'<p class="note">{_inline(note)}</p>' for note in table.notes)
        title = f"{_inline(table.title)}: {filled} of {len(table.rows)} with runs"
        parts.append(_details(title, table_html(table), notes))
    for claim in claims:
        if claim.holds_if == "cost" and cost_rows(claim, complexity):
            table = cost_table(claim, complexity)
            parts.append(_details(_inline(table.title), table_html(table)))
    return "".join(parts)


def _facts(run):
    """A run's facts beside its config: {title: text}."""
    best = None if run.best_test_top1 is None else f"{run.best_test_top1:.2f} (epoch {run.best_epoch})"
    facts = {
        "run": run.run.rsplit("/", 1)[-1],
        "state": run.state,
        "top-1": rounded(run.test_top1, 2),
        "top-5": rounded(run.test_top5, 2),
        "best on test": best,
        "train loss": rounded(run.train_loss, 4),
        "hours": rounded((run.seconds or 0) / 3600, 2),
        "on": run.device,
        "torch": run.torch,
        "python": run.python,
        "commit": run.commit and run.commit[:10] + (" + changes" if run.dirty else ""),
        "data files": run.data_fingerprint
        and run.data_fingerprint[:10] + (" not verified" if run.data_verified is False else ""),
        "start": run.start,
        "message": run.message,
    }
    return {title: DASH if fact is None else str(fact) for title, fact in facts.items()}


def _facts_table(runs):
    facts = [_facts(run) for run in runs]
    header, rows = list(facts[0]), [list(fact.values()) for fact in facts]
    return Table("facts", "Runs", [], header, rows, [], [], [], labels=len(header))


def _runs_section(runs, configs):
    """Each run's facts, grouped by what was run; the config stands once for the runs that differ in the seed alone."""
    groups = defaultdict(list)
    for run in runs:
        config = configs.get(run.run)
        shown = json.dumps({k: v for k, v in config.items() if k != "seed"}, indent=1, sort_keys=True) if config else ""
        groups[run.data, run.model, run.attention, run.schedule, run.precision, shown].append(run)
    parts = []
    for group in sorted(groups, key=lambda group: (group[0], network_place(group[1]), group[2:])):
        (data, model, attention, schedule, precision, config), rows = group, groups[group]
        finished = [run.test_top1 for run in rows if run.state == "finished"]
        deviations = "".join(f", {k}={v}" for k, v in rows[0].deviations.items())
        name = html.escape(f"{data}/{model}/{attention}, schedule={schedule}, precision={precision}{deviations}")
        shown = _details("config", f"<pre><code>{html.escape(config)}</code></pre>") if config else ""
        parts.append(_details(f"<b>{name}</b>: {accuracy(finished)}", table_html(_facts_table(rows)), shown))
    return "".join(parts) or '<p class="note">Nothing was run yet.</p>'


def make_report(results):
    """(the page as text, its pictures) from a folder of results."""
    results = Path(results)
    runs = read_runs(results / "runs.csv")
    paper, complexity = read_paper(results), read_complexity(results)
    claims = read_claims(results / "claims.yaml")
    curves, configs = {}, {}
    wanted = {record_name({"run": run.run}) for run in runs}
    for name, (run, epochs) in read_records(results / "metrics")[0].items():
        if name in wanted:
            configs[run["run"]] = run.get("config")
            if run["state"] == "finished":
                curves[run["run"]] = epochs.column("test_top1")

    table_parts, claim_parts, missing, told = [], [], [], set()
    galleries = {"claims": [], "against": [], "curves": [], "cost": []}
    for protocol in protocols(runs):
        selection = select(runs, protocol)
        for table in build(runs, protocol, results):
            table_parts.append(_table_section(table, told))
            missing += [(protocol, table)] if table.missing else []
            if table.labels == 3:
                galleries["against"] += comparison_pictures(table, protocol)
        galleries["curves"] += curve_pictures(selection, protocol, curves)
        galleries["cost"] += cost_pictures(selection, protocol, paper)
        if protocol.schedule is None:
            judged = judge_contests(claims, runs, protocol)
            judgement = judge(claims, judged, runs, protocol, complexity)
            if protocol == Protocol():
                verdicts = claims_in_short(judgement)
            else:
                claim_parts.append(f"<h3>The same from runs with {protocol.words}</h3>")
            galleries["claims"] += claim_pictures(judged, protocol)
            claim_parts.append(_claims_section(claims, judged, judgement, complexity))

    finished = sum(run.state == "finished" for run in runs)
    absent = "".join(
        f"<li>{_inline(table.title)}: {len(table.missing)} of {len(table.records)} cells. {_commands(table)}</li>"
        for _, table in missing
    )
    sections = [
        ("results", "Tables", "".join(table_parts)),
        ("claims", "Claims", _gallery(galleries["claims"] + galleries["against"]) + "".join(claim_parts)),
        ("curves", "Learning curves", _gallery(galleries["curves"])),
        ("cost", "Accuracy against cost", _gallery(galleries["cost"])),
        ("runs", "Runs", _runs_section(runs, configs)),
        ("missing", "Not run yet", f"<ul>{absent}</ul>" if absent else "<p>Everything was run.</p>"),
    ]
    navigation = "".join(f'<a href="#{id}">{title}</a>' for id, title, _ in sections)
    body = "".join(f'<h2 id="{id}">{title}</h2>{content}' for id, title, content in sections)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LC modules: the paper's numbers and ours</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>LC modules: the paper's numbers and ours</h1>
<p class="stop">The paper is <b>retracted</b> (Journal of Sensors 2022, 2000170; December 2023). This is an independent check:
the networks follow the paper's printed counts, every number of ours follows from runs that are recorded beside this page.</p>
<p>{verdicts}</p>
<p>{finished} finished runs. Accuracies are those of the last epoch, on the test set; mean ± sample standard deviation (number
of seeds).</p>
{table_html(counts(runs)) if runs else ""}
<nav>{navigation}</nav>
{body}
<p class="note">Made by <code>python scripts/report.py</code> from <code>results/runs.csv</code>,
<code>results/metrics/</code>, <code>results/paper.csv</code>, <code>results/complexity.csv</code> and
<code>results/claims.yaml</code>.</p>
</body>
</html>
"""
    return page, [picture for gallery in galleries.values() for picture in gallery]


def write_report(results):
    """Write report.html and figures/*.svg, *.png; figures of an earlier report that are no longer made go. Returns their number."""
    results = Path(results)
    page, pictures = make_report(results)
    write(results / "report.html", page)
    for picture in pictures:
        write(results / "figures" / f"{picture.name}.svg", picture.svg)
        write(results / "figures" / f"{picture.name}.png", picture.png)
    made = {picture.name for picture in pictures}
    for kind in ("curves", "cost", "claims", "against-none"):
        for file in (results / "figures").glob(f"{kind}*"):
            if file.stem not in made and file.suffix in (".svg", ".png"):
                file.unlink()
    return len(pictures)
