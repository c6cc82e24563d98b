"""The result tables of the README: text between `<!-- results:begin NAME -->` and `<!-- results:end -->`, never written by hand."""

import re
from pathlib import Path

from lcm.errors import UserError
from lcm.reporting.claims import claims_in_short, judge, judge_contests, read_claims
from lcm.reporting.cost import cost_block
from lcm.reporting.findings import findings
from lcm.reporting.render import DASH, accuracy, markdown_rows, pipes, signed
from lcm.reporting.selection import ATTENTIONS, DATA_TITLE, NETWORK_TITLE, Protocol, protocols, select
from lcm.reporting.speed import speed_block
from lcm.reporting.statistics import CONTRADICTED, SUPPORTED, pairs_to_reach
from lcm.reporting.tables import build, comparison_table, counts, read_complexity

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)


def _difference(record):
    """`+0.12 [-0.10, +0.34]`, bold where the verdict is not open; `+0.12 (2 pairs)` where so few have no interval; a dash."""
    if not record or not record["pairs"]:
        return DASH
    text, pairs = signed(record["difference"]), record["pairs"]
    if record["low"] is None:
        return f"{text} ({pairs} pair{'s' * (pairs > 1)})"
    text += f" [{signed(record['low'])}, {signed(record['high'])}]"
    return f"**{text}**" if record["verdict"] in (SUPPORTED, CONTRADICTED) else text


def summary(runs, results):
    """What was found so far: every attention's difference from none on every network and data set that has runs, and the
    verdicts on the claims, in few lines."""
    others = [attention for attention in ATTENTIONS if attention != "none"]
    others += sorted({run.attention for run in runs} - set(ATTENTIONS))  # of users
    header, rows = ["data", "network", "schedule", "precision", "none", *others], []
    for protocol in protocols(runs):
        records = {(r["data"], r["model"], r["attention"]): r for r in comparison_table(runs, protocol).records}
        for (data, model), arms in select(runs, protocol).groups().items():
            names = [DATA_TITLE.get(data, data), NETWORK_TITLE.get(model, model)]
            names += [protocol.schedule_of(data), protocol.precision]
            baseline = accuracy([run.test_top1 for run in arms.get("none", {}).values()])
            rows.append([*names, baseline, *(_difference(records.get((data, model, other))) for other in others)])
    claims = read_claims(Path(results) / "claims.yaml")
    judged = judge_contests(claims, runs, Protocol())
    verdicts = claims_in_short(judge(claims, judged, runs, Protocol(), read_complexity(results)))
    if not rows:
        return f"Nothing was run yet. {verdicts}"
    legend = (
        "Test top-1 (%) of the last epoch for `none`, mean ± standard deviation (seeds); for the others the paired "
        "difference from it, mean and 95 % interval over the seeds (too narrow where they are few). Bold: interval "
        "and exact test, corrected for the comparisons of the row, agree that it is not zero; with fewer than "
        f"{pairs_to_reach(len(others))} seeds a row of {len(others)} comparisons can have nothing bold."
    )
    return f"{pipes(header, rows, labels=4)}\n\n{legend}\n\n{verdicts}"


def fill_readme(text, blocks):
    """`text` with every part between `<!-- results:begin NAME -->` and `<!-- results:end -->` made anew from `blocks[NAME]`.

    Raises UserError for a name that there is no block for.
    """

    def fill(match):
        if match[2] not in blocks:
            raise UserError(f"README: no result is called {match[2]}; there are {', '.join(sorted(blocks))}")
        return f"{match[1]}{blocks[match[2]]}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def readme_blocks(runs, results):
    """What a README may show, by name: `summary`, `counts`, `cost`, `speed`, and the rows of every table of these runs."""
    blocks = {
        "counts": markdown_rows(counts(runs)) if runs else "Nothing was run yet.",
        "summary": summary(runs, results),
        "findings": findings(runs, results),
        "cost": cost_block(results),
        "cost_cpu": cost_block(results, on_cpu=True),
        "speed": speed_block(results),
    }
    for protocol in [*protocols(runs), Protocol("digits")]:
        for table in build(runs, protocol, results):
            missing = (
                f"\n\nDashes: not run yet; the commands are in `results/{table.name}.md`." if table.missing else ""
            )
            blocks[table.name] = markdown_rows(table) + missing
    return blocks
