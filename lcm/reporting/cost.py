"""The hours of the paper's tables: a training step of each network times images, epochs, runs."""

from pathlib import Path

import pandas as pd

from lcm.config import compose
from lcm.reporting.protocol import ARM, PAPER_SCHEDULE
from lcm.reporting.render import DASH, Table, plural
from lcm.reporting.tables import read_complexity, read_paper

TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10, CIFAR-100 and mini-ImageNet alike
EVALUATION = 1 / 3  # an image costs a forward pass in evaluation, and about three in training
# float32 operations a second outside of tensor cores: NVIDIA's figure for the H200 SXM
H200 = 67e12
SHARED = (
    "Multiplied by images and epochs; an evaluated image counts a third. `all` counts a run "
    "that two tables share once."
)


def cells(results):
    """{table: {(data, model, attention), ...}} of the paper: the runs of one seed. Tables 1, 3 and
    4 share some."""
    return {
        table: set(rows[ARM].itertuples(index=False, name=None))
        for table, rows in read_paper(results).groupby("table")
    }


def images(data):
    """Training images that a run on `data` costs: its epochs, and the evaluation after each."""
    epochs = compose.load("schedule", PAPER_SCHEDULE[data])["epochs"]
    return epochs * (TRAINING_IMAGES + EVALUATION * TEST_IMAGES)


def hours(cells, seconds):
    """Hours of the runs `cells`, with {(model, attention): seconds an image}; None where one is
    missing."""
    if any((model, attention) not in seconds for _, model, attention in cells):
        return None
    return sum(images(data) * seconds[model, attention] for data, model, attention in cells) / 3600


def steps(results, on_card):
    """({(model, attention): seconds an image}, how they are known) on a CPU, or on a card: measured
    (cost.csv), or computed for an H200 that does nothing but multiply and add."""
    names, file = ["model", "attention"], Path(results) / "cost.csv"
    rows = pd.DataFrame({"device": []}, dtype=str)
    if file.exists():
        rows = pd.read_csv(file, keep_default_na=False)
    rows = rows[rows["device"].str.startswith("cpu") != on_card]
    if len(rows):
        devices = " and ".join(sorted(set(rows["device"])))
        how = f"seconds of a training step in float32 on {devices}"
        how = f"Measured: {how} (`python scripts/cost.py` -> `results/cost.csv`)"
        return rows.set_index(names)["seconds_per_image"].to_dict(), how
    if not on_card:
        return {}, "Not measured yet: `python scripts/cost.py`"
    macs = read_complexity(results).drop_duplicates(names).set_index(names)["macs"]
    return (3 * 2 * macs / H200).to_dict(), (
        "Computed, not measured: a lower bound for an H200 in float32, six operations for "
        f"each multiply-accumulate at {H200 / 1e12:.0f} TFLOP/s and no time for memory or "
        "kernel launches; small networks take several times as long"
    )


def cost_table(results, on_card):
    """Hours for each table of the paper and all of them, on one card or on the CPU of cost.csv."""
    seconds, how = steps(results, on_card)
    tables = {f"Table {number}": runs for number, runs in cells(results).items()}
    tables["all"] = set().union(*tables.values())
    seeds = (1, 10) if on_card else (1, 6, 10)
    header = ["", "runs per seed", *(plural(count, "seed") for count in seeds)]
    rows = []
    for name, runs in tables.items():
        took = hours(runs, seconds)
        cells_of_seeds = [DASH if took is None else duration(took * n, not on_card) for n in seeds]
        rows.append([name, str(len(runs)), *cells_of_seeds])
    return Table("cost", "", header, rows, [f"{how}. {SHARED}"])


def duration(hours, days):
    """`3.4 h`, or with `days` `12 days` from 72 hours on."""
    if days and hours >= 72:
        return f"{hours / 24:,.0f} days"
    return f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h"
