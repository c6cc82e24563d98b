"""Rows: medians over rounds, as lines of a CSV file and on the terminal. A row is a dict; what was not measured is missing."""

import csv
import io
import statistics
import time

import pandas as pd
from benchmark.worker import rate

from lcm.errors import UserError
from lcm.files import write

COLUMNS = [
    *("date", "machine", "torch", "threads", "part", "network", "attention", "what", "variant"),
    *("images_per_second", "cpu_seconds_per_image", "peak_mb", "ratio", "low", "high", "rounds", "disturbed", "remark"),
]


def faster(report, base):
    return rate(report) / rate(base)


def slower(report, base):
    return rate(base) / rate(report)


def larger(report, base):
    return report["peak_mb"] / base["peak_mb"]


def summarise(rounds, what, ratio=faster):
    """A row for each side: medians over the rounds; ratios to its base within each round."""
    rows = []
    for side in rounds.sides:
        row = {"network": side.spec.network, "attention": side.spec.attention, "what": what, "variant": side.variant}
        rows.append(row)
        if side.refused:
            row["remark"] = short(side.refused)
            continue
        reports = [reports[side] for reports in rounds.reports]
        ratios = [ratio(reports[side], reports[side.base]) for reports in rounds.reports if side.base in reports]
        row |= {
            "images_per_second": statistics.median(map(rate, reports)),
            "cpu_seconds_per_image": statistics.median(report["cpu"] / report["images"] for report in reports),
            "peak_mb": max(report["peak_mb"] for report in reports),
            "rounds": rounds.undisturbed,
            "disturbed": rounds.disturbed,
            "remark": "" if rounds.undisturbed else "disturbed",
        }
        if ratios:
            row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return rows


def remarked(row, words):
    """The row with one more remark, before those that it has."""
    return row | {"remark": "; ".join(filter(None, [words, row["remark"]]))}


def short(refusal):
    """ "not on this processor" for a precision that the machine lacks, otherwise the first line of the reason."""
    return "not on this processor" if refusal.startswith("precision=") else refusal.splitlines()[0][:200]


class Table:
    """The CSV file that rows are added to, group by group.

    Rows of a part and network that are measured anew replace those that the file had of them; all others stay.

    Args:
        machine: what the rows' columns `machine`, `torch` and `threads` say.

    Raises:
        UserError: the file is something else.
    """

    def __init__(self, file, **machine):
        self.file, self.measured = file, set()
        self.common = {"date": time.strftime("%Y-%m-%d"), **machine}
        if file.exists() and not file.read_text(encoding="utf-8").startswith(",".join(COLUMNS) + "\n"):
            raise UserError(f"--out {file}: this file is not a table of this script; name another, or move it away")

    def add(self, part, rows):
        """Write rows of a part to the file, now, and show them."""
        new = []
        for row in rows:
            cells = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            new.append(self.common | {"part": part} | cells)
        old = list(csv.DictReader(io.StringIO(self.file.read_text(encoding="utf-8")))) if self.file.exists() else []
        anew = {(part, row["network"]) for row in new} - self.measured
        self.measured |= anew
        order = list(dict.fromkeys(row["part"] for row in old + new))
        kept = [row for row in old if (row["part"], row["network"]) not in anew]
        lines = io.StringIO()
        table = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(kept + new, key=lambda row: order.index(row["part"])))
        write(self.file, lines.getvalue())
        print(pd.DataFrame(new, columns=COLUMNS[5:], dtype=object).to_string(index=False, na_rep=""), flush=True)
