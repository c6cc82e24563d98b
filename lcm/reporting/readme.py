"""The blocks of READMEs between `<!-- results:begin NAME -->` and `<!-- results:end -->`."""

import re
from pathlib import Path

from lcm.reporting.render import markdown_rows
from lcm.reporting.tables import counts

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)
NOTHING = "Nothing was run yet."


def fill_readme(text, blocks):
    """`text` with what is in each block NAME replaced by `blocks[NAME]`."""
    return _BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}\n{match[3]}", text)


def readme_blocks(runs, tables, results):
    """{name: Markdown} of what a README may show: `counts`, each of the `tables` that were built,
    and the comparison of every plan, with runs or without."""
    plans = [file.stem for file in Path(results, "plans").glob("*.yaml")]
    blocks = {f"comparison-{name}": NOTHING for name in plans}
    blocks["counts"] = markdown_rows(counts(runs)) if len(runs) else NOTHING
    for table in tables:
        hint = f"Dashes: not run yet; the commands are in `results/{table.name}.md`."
        parts = [table.warning, markdown_rows(table), hint if table.missing else ""]
        blocks[table.name] = "\n\n".join(filter(None, parts))
    return blocks
