"""Tables as text: numbers as they are printed, and a table as Markdown, LaTeX and CSV."""

import csv
import io
import re
import statistics
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

from lcm.files import write

DASH = "–"


class Table(NamedTuple):
    """A table ready to be written: cells are text, the first `labels` of a row its names; a rule stands before `groups`."""

    name: str
    title: str
    notes: list
    header: list
    rows: list
    groups: list
    records: list  # the CSV file: one dict a cell
    missing: list  # the commands that fill its dashes
    warning: str = ""
    labels: int = 1

    @property
    def filled(self):
        return any(record.get("n") for record in self.records)


def rounded(number, places):
    """`number` as text, half rounded up as the paper does (23.1848 M is printed 23.185); a dash for None."""
    if number is None:
        return DASH
    return str(Decimal(str(number)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def signed(number, places=2):
    """+0.59, -0.07, 0.00; a dash for None."""
    if number is None:
        return DASH
    text = rounded(number, places)
    return text.lstrip("-") if float(text) == 0 else text if text.startswith("-") else f"+{text}"


def mean_and_deviation(values):
    """(mean, sample standard deviation) of a list; None for what it does not define."""
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def accuracy(values):
    """`92.31 ± 0.12 (6)`: mean, standard deviation (a dash for one seed), number of seeds; a dash for none."""
    mean, deviation = mean_and_deviation(values)
    return DASH if mean is None else f"{rounded(mean, 2)} ± {rounded(deviation, 2)} ({len(values)})"


def interval(comparison, places=2):
    """`[+0.12, +0.61]`, a dash where it is not defined."""
    if comparison.low is None:
        return DASH
    return f"[{signed(comparison.low, places)}, {signed(comparison.high, places)}]"


def p_value(p):
    """Three decimals; a dash for None."""
    return DASH if p is None else "<0.001" if p < 0.0005 else rounded(p, 3)


def pipes(header, rows, labels=1):
    """Rows of text as a Markdown table whose first `labels` columns stand left, the others right."""
    lines = [header, ["---"] * labels + ["---:"] * (len(header) - labels), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_rows(table):
    """The table proper in Markdown."""
    return pipes(table.header, table.rows, table.labels)


def missing_words(table):
    """What stands above the commands that fill a table's dashes."""
    named = any("seed=" in command for command in table.missing)
    return f"Not run yet: {len(table.missing)}, each with its command" + (
        "" if named else " (`seed='range(10)'` at its end for ten seeds)"
    )


def markdown(table):
    parts = [f"# {table.title}"]
    if table.warning:
        parts.append(f"> **{table.warning}**")
    parts += [markdown_rows(table), *table.notes]
    if table.missing:
        parts.append(f"{missing_words(table)}:")
        parts.append("\n".join(["```", *table.missing, "```"]))
    return "\n\n".join(parts) + "\n"


_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", DASH: "--", "Δ": r"$\Delta$", "×": r"$\times$"}
)


def _latex_cell(text):
    text = text.replace("`", "").replace("**", "")
    if text[:1] in "+-" and text[1:2].isdigit():
        return f"${text}$"
    return text.replace("[-", "[$-$").replace(" -", " $-$" if text.startswith("[") else " -").translate(_LATEX)


def latex(table):
    """A booktabs table for \\input, the notes as comments."""
    warning = f" \\textbf{{{_latex_cell(table.warning)}}}" if table.warning else ""
    lines = [
        *(f"% {note}" for note in table.notes),
        r"\begin{table}",
        rf"\caption{{{_latex_cell(re.sub(r'^Table .. ', '', table.title))}.{warning}}}",
        rf"\begin{{tabular}}{{{'l' * table.labels}{'r' * (len(table.header) - table.labels)}}}",
        r"\toprule",
        " & ".join(map(_latex_cell, table.header)) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if index in table.groups:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex_cell, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def csv_text(table):
    """One line a cell of the table, numbers with four decimals, several in one field with spaces between them."""

    def field(key, value):
        if isinstance(value, tuple):
            return " ".join(field(key, item) for item in value)
        return f"{value:.4f}" if isinstance(value, float) and key != "gfloat" else value

    out = io.StringIO()
    writer = csv.DictWriter(out, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({key: field(key, value) for key, value in record.items()})
    return out.getvalue()


def write_tables(tables, results):
    """Write each table as .md, .csv and .tex; returns the files."""
    files = []
    for table in tables:
        for suffix, text in (("md", markdown(table)), ("csv", csv_text(table)), ("tex", latex(table))):
            files.append(Path(results) / f"{table.name}.{suffix}")
            write(files[-1], text)
    return files
