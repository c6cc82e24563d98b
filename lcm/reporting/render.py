"""A table as Markdown, LaTeX and CSV (HTML: report.html.jinja), and numbers as they are printed."""

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lcm.errors import plural
from lcm.files import write

DASH = "–"


class Table(NamedTuple):
    """A table ready to be written: cells are text; the first `labels` columns are names."""

    name: str
    title: str
    header: list
    rows: list
    notes: list = []  # noqa: RUF012  never changed
    records: pd.DataFrame = pd.DataFrame()  # the CSV file: one row for each cell
    missing: tuple = ()  # the commands that fill its dashes
    warning: str = ""
    labels: int = 1
    method: str = ""  # how its numbers are made: the same for many tables, unlike `notes`
    narrow: tuple = ()  # the columns of its LaTeX table, where these are fewer
    compared: tuple = ()  # the `paired.Row`s behind its rows, for a figure
    differ: tuple = ()  # of the notes: in what its pairs differ besides the attention

    @property
    def filled(self):
        """How many cells have runs."""
        return int((self.records["n"] > 0).sum())

    @property
    def missing_words(self):
        """The line above the commands that fill the dashes."""
        return (
            f"Not run yet: {len(self.missing)}, each with its command (append "
            "`seed='range(N)'` for N seeds)"
        )


def columns(rows):
    """(header, rows) of a table from rows as {column: cell}."""
    return list(rows[0]), [list(row.values()) for row in rows]


def rounded(number, places):
    """`number` as text, a half rounded away from zero, also where a sum of floats is just below it
    (0.67499999999999); a dash for a missing one."""
    if pd.isna(number):
        return DASH
    # Nine places remove the error of a sum before the half is looked at.
    return str(round(Decimal(str(number)), 9).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def as_printed(number, cell):
    """The number rounded as the paper rounded its printed `cell`: to three decimals, half up, and
    again to the cell's."""
    # Table 5 prints 23.184804 M as 23.19, by way of 23.185. Rounded once it would be 23.18.
    return DASH if pd.isna(number) else rounded(rounded(number, 3), len(cell.partition(".")[2]))


def scaled(count, power, places):
    """An exact count in units of 10**power as text."""
    return rounded(count if pd.isna(count) else Decimal(int(count)) / 10**power, places)


def signed(number):
    """+0.59, -0.07, 0.00; a dash for a missing one."""
    text = rounded(number, 2)
    if text == DASH or (text.startswith("-") and float(text)):
        return text
    # -0.004 is rounded to -0.00: zero gets no sign.
    return f"+{text}" if float(text) else text.lstrip("-")


def reached(found):
    """`92.31 ± 0.12 (6)`: mean, standard deviation (a dash for one seed), number of seeds, of what
    `paired.measured` returns. `(8 of 10)` where some diverged; a dash for none."""
    n, tried = found["n"], found["n"] + found["diverged"]
    count = f"{n} of {tried}" if tried > n else str(n)
    if not n:
        return f"{DASH} ({count})" if tried else DASH
    return f"{rounded(found['mean'], 2)} ± {rounded(found['deviation'], 2)} ({count})"


def interval(low, high):
    """`[+0.12, +0.61]`, a dash where it is not defined."""
    return DASH if low is None else f"[{signed(low)}, {signed(high)}]"


def p_value(p):
    """Three decimals; a dash for None."""
    if p is None:
        return DASH
    # Three decimals would make it 0.000, and no p-value is zero.
    return "<0.001" if p < 0.0005 else rounded(p, 3)


def elapsed(seconds):
    """ "13.0 hours", "47 minutes" """
    return (
        f"{seconds / 3600:.1f} hours"
        if seconds >= 3600
        else plural(max(1, round(seconds / 60)), "minute")
    )


def inert(text):
    """Text on one line in which nothing is an HTML tag."""
    # Only before these does `<` begin a tag, a comment or a declaration: `<0.001` stays.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()))


def pipes(header, rows, labels=1):
    """Rows of text as a Markdown table; the first `labels` columns are aligned left."""
    rows = [[inert(cell).replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * labels + ["---:"] * (len(header) - labels), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_rows(table):
    """The table alone in Markdown, without title and notes."""
    return pipes(table.header, table.rows, table.labels)


def fill_blocks(text, tables):
    """`text` with each part between `<!-- results:begin NAME -->` and `<!-- results:end -->`
    replaced by the table of that name; without such a table nothing was run."""
    blocks = {
        table.name: "\n\n".join(filter(None, [table.warning, markdown_rows(table), *table.differ]))
        for table in tables
        if table.rows
    }
    block = r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)"

    # A function: re.sub would interpret the backslashes of a replacement text, such as `\|`.
    def fill(match):
        return f"{match[1]}{blocks.get(match[2], 'Nothing was run yet.')}\n{match[3]}"

    return re.sub(block, fill, text, flags=re.DOTALL)


def markdown(table):
    """The text of TABLE.md."""
    warning = [f"> **{table.warning}**"] if table.warning else []
    notes = [*filter(None, [table.method]), *table.notes]
    parts = [f"# {table.title}", *warning, markdown_rows(table), *map(inert, notes)]
    if table.missing:
        parts += [f"{table.missing_words}:", "\n".join(["```", *table.missing, "```"])]
    return "\n\n".join(parts) + "\n"


# What pandas does not escape.
_LATEX = str.maketrans({"±": r"$\pm$", DASH: "--", "<": "$<$", ">": "$>$"})


def latex(table):
    """A booktabs tabular for \\input, below comments with title, warning and notes.

    Of a table with `narrow` columns these alone, and the other names where they differ: it fits
    into a column of a thesis. All of it is in the CSV file.
    """
    cells = pd.DataFrame(table.rows, columns=table.header)
    names = table.header[: table.labels]
    if table.narrow:
        names = [name for name in names if name in table.narrow or cells[name].nunique() > 1]
        cells = cells[names + [key for key in table.header[table.labels :] if key in table.narrow]]
    sides = "l" * len(names) + "r" * (cells.shape[1] - len(names))
    # pandas escapes first, or the dollars were escaped, too. In math mode the hyphen before a
    # number is a minus; that of ResNet-20 follows no space and stays.
    text = cells.to_latex(index=False, escape=True, column_format=sides).translate(_LATEX)
    text = re.sub(r"(?<=[ \[])[+-]\d[\d.]*", r"$\g<0>$", text)
    # Each on one line: behind a line break the rest of a comment would be read as LaTeX.
    comments = filter(None, [table.title, table.warning, table.method, *table.notes])
    return "".join(f"% {' '.join(line.split())}\n" for line in comments) + text


def csv_text(table):
    """One line for each cell of the table, numbers with four decimals, several in one field with
    spaces between them."""

    def field(value):
        if isinstance(value, tuple):
            return " ".join(map(field, value))
        # NaN alone is not equal to itself: pandas gets it as it is, and leaves the field empty.
        return f"{value:.4f}" if isinstance(value, float) and value == value else value

    # GFloat is exact in nine decimals; four would round it.
    cells = {
        key: [value if key == "gfloat" else field(value) for value in table.records[key]]
        for key in table.records
    }
    # As objects: whole numbers with a gap among them would become floats, and 6 would be 6.0.
    return pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n")


VIEWS = {".md": markdown, ".csv": csv_text, ".tex": latex}  # by the ending of their files


def write_tables(tables, results):
    """Write each table in each of the VIEWS."""
    for table in tables:
        for suffix, view in VIEWS.items():
            write(Path(results) / f"{table.name}{suffix}", view(table))
