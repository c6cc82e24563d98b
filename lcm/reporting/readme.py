"""The result blocks of a README, generated between `<!-- results:begin NAME -->` and `<!-- results:end -->`."""

import re

from lcm.errors import UserError
from lcm.reporting.cost import cost_block, cost_cpu_block
from lcm.reporting.protocol import ATTENTIONS, DATA_TITLE, NETWORK_TITLE, in_order, protocols
from lcm.reporting.render import DASH, markdown_rows, pipes, plural, reached, signed
from lcm.reporting.statistics import CONTRADICTED, SUPPORTED
from lcm.reporting.tables import build, comparison_table, counts

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)


def _difference(record):
    """`+0.12 [-0.10, +0.34]`, bold where the verdict is decided; `+0.12 (2 pairs)` where these are too few for an interval."""
    if record is None or not record.pairs:
        return DASH
    text = signed(record.difference)
    if record.low is None:
        return f"{text} ({plural(record.pairs, 'pair')})"
    text += f" [{signed(record.low)}, {signed(record.high)}]"
    return f"**{text}**" if record.verdict in (SUPPORTED, CONTRADICTED) else text


def summary(runs, results):
    """What was found so far: the difference of every attention from none, wherever there are runs."""
    others = [name for name in in_order([*ATTENTIONS, *runs["attention"]]) if name != "none"]
    header = ["data", "network", "schedule", "precision", "none", *others]
    header += ["pairs needed"]
    rows = []
    for protocol in protocols(runs):
        records = comparison_table(runs, protocol, results).records
        groups = records.groupby(["data", "model"], sort=False) if len(records) else ()
        for (data, model), own in groups:
            found = {r.attention: r for r in own.itertuples() if r.against in (None, "none")}
            names = [DATA_TITLE.get(data, data), NETWORK_TITLE.get(model, model)]
            names += [protocol.schedule_of(data), protocol.precision]
            cells = [_difference(found.get(other)) for other in others]
            needed = {r.needed for r in found.values() if r.needed and r.pairs}
            none = found["none"]
            baseline = reached(none.mean, none.deviation, none.n, none.n + none.diverged)
            rows.append([*names, baseline, *cells, " or ".join(map(str, sorted(needed))) or DASH])
    if not rows:
        return "Nothing was run yet."
    legend = (
        "Test top-1 (%) of the last epoch for `none`, mean ± standard deviation (seeds); for the "
        "others the paired difference from it, mean and 95 % interval over the seeds (too narrow "
        "where they are few). Bold: significant after correction for the planned family. `pairs "
        "needed`: with fewer no difference of the row can be significant."
    )
    return f"{pipes(header, rows, labels=4)}\n\n{legend}"


def fill_readme(text, blocks):
    """`text` with every part between `<!-- results:begin NAME -->` and `<!-- results:end -->` replaced by `blocks[NAME]`.

    Raises UserError for a name that there is no block for.
    """

    def fill(match):
        if match[2] not in blocks:
            raise UserError(
                f"README: no result is called {match[2]}; there are {', '.join(sorted(blocks))}"
            )
        return f"{match[1]}{blocks[match[2]]}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def readme_blocks(runs, results):
    """{name: Markdown} of all blocks that a README may show: `summary`, `counts`, `cost` and
    others, and every table."""
    blocks = {
        "counts": markdown_rows(counts(runs)) if len(runs) else "Nothing was run yet.",
        "summary": summary(runs, results),
        "cost": cost_block(results),
        "cost_cpu": cost_cpu_block(results),
    }
    hint = "\n\nDashes: not run yet; the commands are in `results/{}.md`."
    for protocol in protocols(runs):
        for table in build(runs, protocol, results):
            missing = hint.format(table.name) if table.missing else ""
            blocks[table.name] = markdown_rows(table) + missing
    return blocks
