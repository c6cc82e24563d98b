"""What the paper's tables cost in time: a measured training step of each network, times images, epochs and runs."""

from pathlib import Path

from lcm.config.options import load
from lcm.reporting.render import DASH, pipes
from lcm.reporting.selection import PAPER_SCHEDULE
from lcm.reporting.tables import read_complexity, read_csv, read_paper

TRAINING_IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10, CIFAR-100 and mini-ImageNet alike
EPOCHS = {data: load("schedule", schedule)["epochs"] for data, schedule in PAPER_SCHEDULE.items()}
EVALUATION = 1 / 3  # an image costs a forward pass in evaluation, and about three in training
H200 = 67e12  # float32 operations a second outside of tensor cores: NVIDIA's figure for the H200 SXM
SEEDS = (1, 6, 10)  # ten: the fewest with which the corrected tests of every table can decide (results/claims.md)


def cells(results):
    """{table: {(data, model, attention), ...}} of the paper: the runs of one seed. Tables 1, 3 and 4 share some."""
    found = {}
    for row in read_paper(results):
        found.setdefault(row["table"], set()).add((row["data"], row["model"], row["attention"]))
    return found


def images(data):
    """Training images that a run on `data` costs: its epochs, and the evaluation after each of them."""
    return EPOCHS[data] * (TRAINING_IMAGES + EVALUATION * TEST_IMAGES)


def hours(cells, seconds):
    """Hours of the runs `cells`, with {(model, attention): seconds an image}; None where one was not measured."""
    if any((model, attention) not in seconds for _, model, attention in cells):
        return None
    return sum(images(data) * seconds[model, attention] for data, model, attention in cells) / 3600


def read_steps(results):
    """({(model, attention): seconds an image}, the devices) of cost.csv."""
    rows = read_csv(Path(results) / "cost.csv", optional=True)
    seconds = {(row["model"], row["attention"]): float(row["seconds_per_image"]) for row in rows}
    return seconds, sorted({row["device"] for row in rows})


def floor(results):
    """{(model, attention): seconds an image} on an H200 that does nothing but multiply and add, at its float32 peak."""
    return {
        (model, attention): 3 * 2 * macs / H200
        for (_, model, attention), (_, _, macs) in read_complexity(results).items()
    }


def cost_block(results, on_cpu=False):
    """Runs and time of each of the paper's tables and of all of them: on a GPU, computed, or on a CPU, measured; in Markdown."""
    measured, devices = read_steps(results)
    if on_cpu and not measured:
        return "Not measured yet: `python scripts/cost.py`."
    tables = {f"Table {number}": runs for number, runs in sorted(cells(results).items())}
    tables["all"] = set().union(*tables.values())
    seconds = measured if on_cpu else floor(results)
    header = ["", "runs a seed", *(f"{n} seed{'s' * (n > 1)}" for n in SEEDS)]
    rows = [[name, str(len(runs)), *(_time(hours(runs, seconds), n) for n in SEEDS)] for name, runs in tables.items()]
    if on_cpu:
        legend = (
            f"Measured: seconds of a training step in float32 on {' and '.join(devices)} (`python scripts/cost.py` -> "
            "`results/cost.csv`) times images and epochs, with a third of it for an evaluated image."
        )
    else:
        legend = (
            f"Computed for an H200, not measured: six operations for each multiply-accumulate at {H200 / 1e12:.0f} TFLOP/s, no "
            "time for memory or launches. A run cannot be faster in float32; small networks are several times slower."
        )
    return f"{pipes(header, rows)}\n\n{legend} `all` counts a run that two tables share once."


def _time(hours, seeds):
    """`3.4 h` or `12 days`; a dash for None."""
    if hours is None:
        return DASH
    hours *= seeds
    return f"{hours:.2g} h" if hours < 10 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:,.0f} days"
