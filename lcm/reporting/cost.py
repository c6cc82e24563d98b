"""What the paper's tables cost in time: a training step of each network, measured or computed, times images, epochs and runs."""

from pathlib import Path

import pandas as pd

from lcm.reporting.protocol import ARM, paper_epochs
from lcm.reporting.render import DASH, pipes, plural
from lcm.reporting.tables import read_complexity, read_paper

TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10, CIFAR-100 and mini-ImageNet alike
EVALUATION = 1 / 3  # an image costs a forward pass in evaluation, and about three in training
H200 = (
    67e12  # float32 operations a second outside of tensor cores: NVIDIA's figure for the H200 SXM
)

SHARED = (
    "Multiplied by images and epochs; an evaluated image counts a third. `all` counts a run that two "
    "tables share once."
)


def cells(results):
    """{table: {(data, model, attention), ...}} of the paper: the runs of one seed. Tables 1, 3 and 4 share some."""
    return {
        table: set(rows[ARM].itertuples(index=False, name=None))
        for table, rows in read_paper(results).groupby("table")
    }


def images(data):
    """Training images that a run on `data` costs: its epochs, and the evaluation after each of them."""
    return paper_epochs(data) * (TRAINING_IMAGES + EVALUATION * TEST_IMAGES)


def hours(cells, seconds):
    """Hours of the runs `cells`, with {(model, attention): seconds an image}; None where one is missing."""
    if any((model, attention) not in seconds for _, model, attention in cells):
        return None
    return sum(images(data) * seconds[model, attention] for data, model, attention in cells) / 3600


def measured_steps(results, on_card):
    """({(model, attention): seconds an image}, the devices) of cost.csv: its rows of a GPU, or those of a CPU."""
    file = Path(results) / "cost.csv"
    rows = (
        pd.read_csv(file, keep_default_na=False)
        if file.exists()
        else pd.DataFrame({"device": []}, dtype=str)
    )
    rows = rows[rows["device"].str.startswith("cpu") != on_card]
    seconds = {(row.model, row.attention): row.seconds_per_image for row in rows.itertuples()}
    return seconds, " and ".join(sorted(set(rows["device"])))


def computed_steps(results):
    """{(model, attention): seconds an image} on an H200 that does nothing but multiply and add, at its float32 peak."""
    return {
        (row.model, row.attention): 3 * 2 * row.macs / H200
        for row in read_complexity(results).itertuples()
    }


def card_steps(results):
    """(seconds an image on a card, how they are known)."""
    seconds, devices = measured_steps(results, on_card=True)
    if seconds:
        return (
            seconds,
            f"Measured: a training step in float32 on {devices} (`python scripts/cost.py`)",
        )
    return computed_steps(results), (
        "Computed, not measured: a lower bound for an H200 in float32, six operations for each "
        f"multiply-accumulate at {H200 / 1e12:.0f} TFLOP/s and no time for memory or kernel launches; "
        "small networks take several times as long"
    )


def cost_block(results):
    """Hours on one card for each table of the paper and all of them."""
    seconds, how = card_steps(results)
    if not seconds:
        return "Not computed yet: `python scripts/complexity.py --csv results/complexity.csv`."
    return f"{_table(results, seconds, (1, 10), days=False)}\n\n{how}. {SHARED}"


def cost_cpu_block(results):
    """The same on the CPU that cost.csv was measured on."""
    seconds, devices = measured_steps(results, on_card=False)
    if not seconds:
        return "Not measured yet: `python scripts/cost.py`."
    how = f"Measured: seconds of a training step in float32 on {devices} (`python scripts/cost.py` -> `results/cost.csv`)"
    return f"{_table(results, seconds, (1, 6, 10))}\n\n{how}. {SHARED}"


def _table(results, seconds, seeds, days=True):
    tables = {f"Table {number}": runs for number, runs in cells(results).items()}
    tables["all"] = set().union(*tables.values())
    rows = [
        [name, str(len(runs)), *(duration(hours(runs, seconds), count, days) for count in seeds)]
        for name, runs in tables.items()
    ]
    return pipes(["", "runs per seed", *(plural(count, "seed") for count in seeds)], rows)


def duration(hours, seeds, days=False):
    """`3.4 h`, or `12 days` from 72 hours on; a dash for None."""
    if hours is None:
        return DASH
    hours *= seeds
    if days and hours >= 72:
        return f"{hours / 24:,.0f} days"
    return f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h"
