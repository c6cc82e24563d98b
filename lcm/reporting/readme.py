"""The blocks of READMEs between `<!-- results:begin NAME -->` and `<!-- results:end -->`."""

import re
from pathlib import Path

from lcm.errors import UserError
from lcm.reporting.cost import cost_table
from lcm.reporting.protocol import protocols
from lcm.reporting.render import markdown_rows
from lcm.reporting.tables import build, counts

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)
NOTHING = "Nothing was run yet."


def fill_readme(text, blocks):
    """`text` with every part between `<!-- results:begin NAME -->` and `<!-- results:end -->`
    replaced by `blocks[NAME]`.

    Raises UserError for a name that there is no block for.
    """

    def fill(match):
        if match[2] not in blocks:
            known = ", ".join(sorted(blocks))
            raise UserError(f"README: no result is called {match[2]}; there are {known}")
        return f"{match[1]}{blocks[match[2]]}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def readme_blocks(runs, results):
    """{name: Markdown} of all blocks that a README may show: `counts`, `cost` and `cost_cpu`, every
    table, and the comparison of every plan, with runs or without."""
    plans = [file.stem for file in Path(results, "plans").glob("*.yaml")]
    blocks = {f"comparison-{name}": NOTHING for name in plans}
    blocks["counts"] = markdown_rows(counts(runs)) if len(runs) else NOTHING
    for name, table in (
        ("cost", cost_table(results, True)),
        ("cost_cpu", cost_table(results, False)),
    ):
        blocks[name] = "\n\n".join([markdown_rows(table), *table.notes])
    for protocol in protocols(runs):
        for table in build(runs, protocol, results):
            hint = f"Dashes: not run yet; the commands are in `results/{table.name}.md`."
            parts = [table.warning, markdown_rows(table), hint if table.missing else ""]
            blocks[table.name] = "\n\n".join(filter(None, parts))
    return blocks
