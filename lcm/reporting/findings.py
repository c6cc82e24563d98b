"""What the records say so far, in three lines that follow from the numbers by rule: counts, accuracy, and what would decide."""

import statistics
from decimal import Decimal
from pathlib import Path

from lcm.reporting.cost import cells, floor, hours
from lcm.reporting.render import rounded, signed
from lcm.reporting.selection import DATA_TITLE, NETWORK_TITLE, Protocol, paired, select
from lcm.reporting.statistics import MINIMUM_PAIRS, pairs_to_reach
from lcm.reporting.tables import read_complexity, read_paper

REACHED = 0.6  # points: a mean this near to the paper's printed baseline counts as reached


def cells_met(results):
    """(how many of the paper's printed counts our networks meet at the printed precision, how many there are)."""
    complexity, met, seen = read_complexity(results), 0, set()
    for line in read_paper(results):
        row = line["table"], line["model"], line["attention"]
        if row in seen:
            continue
        seen.add(row)
        params, gfloat, _ = complexity.get(row, (None, None, None))
        ours = {"params_m": None if params is None else Decimal(params) / 10**6, "gflops": gfloat}
        for column, value in ours.items():  # the paper rounds to three decimals, and again to those that it prints
            places = len(line[column].partition(".")[2])
            met += value is not None and rounded(rounded(value, 3), places) == line[column]
    return met, 2 * len(seen)


def baselines(runs, results):
    """A sentence for each network and data set whose baseline was trained with the paper's own schedule; a list."""
    printed = {
        (p["data"], p["model"], p["attention"]): p["value"] for p in read_paper(results) if p["metric"] == "top1"
    }
    selection, found = select(runs, Protocol()), []
    for (data, model), arms in selection.groups().items():
        paper, base = printed.get((data, model, "none")), arms.get("none")
        if paper is None or not base:
            continue
        mean = statistics.fmean(run.test_top1 for run in base.values())
        word = "reached" if abs(mean - paper) <= REACHED else "NOT reached"
        seconds = statistics.fmean(run.seconds for run in base.values())
        devices = " and ".join(sorted({run.device for run in base.values()}))
        name = f"{NETWORK_TITLE.get(model, model)} on {DATA_TITLE.get(data, data)}"
        text = (
            f"the baseline of {name} is {word}: {mean:.2f} % "
            f"({_seeds(len(base))}), the paper prints {paper:.2f} % ({signed(mean - paper)}); "
            f"{seconds / 3600:.1f} h a run on {devices}"
        )
        modules = [
            f"{attention} {signed(statistics.fmean(differences))} ({_pairs(len(differences))})"
            for attention, arm in arms.items()
            if attention != "none" and (differences := list(paired(arm, base).values()))
        ]
        if modules:
            fewest = min(len(paired(arm, base)) for attention, arm in arms.items() if attention != "none")
            text += f". Against it: {', '.join(modules)}"
            text += "; so few pairs decide nothing" if fewest < MINIMUM_PAIRS else ""
        found.append(text)
    return found


def _seeds(number):
    return f"{number} seed{'s' * (number > 1)}"


def _pairs(number):
    return f"{number} pair{'s' * (number != 1)}"


def findings(runs, results):
    """Three lines of Markdown."""
    met, count = cells_met(results)
    trained = baselines(runs, results)
    accuracy = ". ".join(text[0].upper() + text[1:] for text in trained) or (
        "not tested yet with the paper's own schedule: no full run is recorded. The runs below are shorter "
        "and say nothing about the paper's numbers"
    )
    arms = sum(1 for line in read_paper(Path(results)) if line["table"] == 2 and line["metric"] == "top1")
    seeds = max(10, pairs_to_reach(arms))
    time = hours(cells(results)[2], floor(results))
    computed = "" if time is None else f" (at least {seeds * time:.1f} h on an H200, computed, not measured)"
    return "\n".join(
        [
            f"- **Counts: {'right' if met == count else 'not all met'}.** {met} of the paper's {count} printed parameter and "
            "operation counts are met by the networks here.",
            f"- **Accuracy:** {accuracy}.",
            f"- **What would decide:** `python train.py experiment=table2 seed='range({seeds})'`{computed}: corrected for the "
            "comparisons of a table, no test of fewer seeds can.",
        ]
    )
