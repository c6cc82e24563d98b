"""Rows: medians over rounds, as lines of a CSV file and on the terminal. A row is a dict; what was not measured is missing."""

import statistics
import time

import pandas as pd
from benchmark.worker import rate

from lcm.errors import UserError
from lcm.files import write

COLUMNS = [
    *("date", "machine", "torch", "threads", "part", "network", "attention", "what", "variant"),
    *(
        "images_per_second",
        "cpu_seconds_per_image",
        "peak_mb",
        "ratio",
        "low",
        "high",
        "rounds",
        "disturbed",
        "remark",
    ),
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
        row = {
            "network": side.spec.network,
            "attention": side.spec.attention,
            "what": what,
            "variant": side.variant,
        }
        rows.append(row)
        if side.refused:  # a precision that the machine lacks, or the first line of another reason
            lacks = side.refused.startswith("precision=")
            row["remark"] = "not on this processor" if lacks else side.refused.splitlines()[0][:200]
            continue
        reports = [reports[side] for reports in rounds.reports]
        row |= {
            "images_per_second": statistics.median(map(rate, reports)),
            "cpu_seconds_per_image": statistics.median(
                report["cpu"] / report["images"] for report in reports
            ),
            "peak_mb": max(report["peak_mb"] for report in reports),
            "rounds": rounds.undisturbed,
            "disturbed": rounds.disturbed,
            "remark": "" if rounds.undisturbed else "disturbed",
        }
        if ratios := [ratio(of[side], of[side.base]) for of in rounds.reports if side.base in of]:
            row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return rows


class Table:
    """The CSV file that rows are added to, group by group.

    New rows of a part and network replace those that the file had when this was made; all others stay.

    Args:
        machine: the rows' columns `machine`, `torch` and `threads`.

    Raises:
        UserError: the file is not a table of this class.
    """

    def __init__(self, file, **machine):
        self.file, self.measured = file, set()
        self.common = {"date": time.strftime("%Y-%m-%d"), **machine}
        if file.exists() and not file.read_text(encoding="utf-8").startswith(
            ",".join(COLUMNS) + "\n"
        ):
            raise UserError(
                f"--out {file}: this file is not a table of this script; name another, or move it away"
            )

    def add(self, part, rows):
        """Write rows of a part to the file, now, and show them."""
        cells = [
            {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}
            for row in rows
        ]
        new = pd.DataFrame(
            [self.common | {"part": part} | row for row in cells], columns=COLUMNS, dtype=object
        )
        exists = self.file.exists()
        old = (
            pd.read_csv(self.file, dtype=str, keep_default_na=False)
            if exists
            else pd.DataFrame(columns=COLUMNS)
        )
        replaced = set(new["network"]) - {network for of, network in self.measured if of == part}
        self.measured |= {(part, network) for network in replaced}
        kept = old[(old["part"] != part) | ~old["network"].isin(replaced)]
        order = list(dict.fromkeys([*old["part"], part]))
        table = pd.concat([kept, new]).sort_values(
            "part", key=lambda parts: parts.map(order.index), kind="stable"
        )
        write(self.file, table.to_csv(index=False, lineterminator="\n"))
        print(new[COLUMNS[5:]].to_string(index=False, na_rep=""), flush=True)
