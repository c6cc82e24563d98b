"""The result tables of the README: text between `<!-- results:begin NAME -->` and `<!-- results:end -->`, never written by hand."""

import re
from pathlib import Path

from lcm.errors import UserError
from lcm.reporting.claims import claims_in_short, judge, judge_contests, read_claims
from lcm.reporting.render import DASH, accuracy, markdown_rows, signed
from lcm.reporting.selection import ATTENTIONS, Protocol, protocols, select
from lcm.reporting.statistics import CONTRADICTED, SUPPORTED
from lcm.reporting.tables import build, comparison_table, counts, read_complexity

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)


def summary(runs, results):
    """What was found so far: every attention's difference from none on every network and data set that has runs, and the
    verdicts on the claims, in few lines."""
    others = [attention for attention in ATTENTIONS if attention != "none"]
    lines = ["| data | network | schedule | precision | none | " + " | ".join(others) + " |"]
    lines.append("| --- " * 4 + "| ---: " * (1 + len(others)) + "|")
    for protocol in protocols(runs):
        records = {(r["data"], r["model"], r["attention"]): r for r in comparison_table(runs, protocol).records}
        for (data, model), arms in select(runs, protocol).groups().items():
            baseline = [run.test_top1 for _, run in sorted(arms.get("none", {}).items())]
            cells = [data, model, records[data, model, "none"]["schedule"], protocol.precision, accuracy(baseline)]
            for attention in others:
                record = records.get((data, model, attention))
                cell = DASH
                if record and record["pairs"]:
                    cell = signed(record["difference"])
                    if record["low"] is not None:
                        cell += f" [{signed(record['low'])}, {signed(record['high'])}]"
                    cell = f"**{cell}**" if record["verdict"] in (SUPPORTED, CONTRADICTED) else cell
                cells.append(cell)
            lines.append("| " + " | ".join(cells) + " |")
    claims = read_claims(Path(results) / "claims.yaml")
    judged = judge_contests(claims, runs, Protocol())
    verdicts = claims_in_short(judge(claims, judged, runs, Protocol(), read_complexity(results)))
    if len(lines) == 2:
        return f"Nothing was run yet. {verdicts}"
    legend = (
        "Test top-1 (%) of the last epoch for `none`, mean ± standard deviation (seeds); for the others the paired difference "
        "from it, mean and 95 % interval over the seeds; bold where it is above or below zero beyond doubt (exact test, "
        "corrected for the comparisons of its row)."
    )
    return "\n".join(lines) + f"\n\n{legend}\n\n{verdicts}"


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
    """What a README may show, by name: `summary`, `counts`, and the rows of every table that is written for these runs."""
    blocks = {"counts": counts(runs), "summary": summary(runs, results)}
    for protocol in [*protocols(runs), Protocol("digits")]:
        for table in build(runs, protocol, results):
            missing = (
                f"\n\nDashes: not run yet; the commands are in `results/{table.name}.md`." if table.missing else ""
            )
            blocks[table.name] = markdown_rows(table) + missing
    return blocks
