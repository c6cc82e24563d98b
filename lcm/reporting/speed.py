"""results/benchmark.csv, which scripts/benchmark writes, as the page benchmark.md and as a paragraph of the README."""

import pandas as pd

from lcm.reporting.protocol import NETWORK_TITLE
from lcm.reporting.render import DASH, pipes, rounded

NUMBERS = (
    "images_per_second",
    "cpu_seconds_per_image",
    "peak_mb",
    "ratio",
    "low",
    "high",
    "rounds",
    "disturbed",
)


def read_benchmark(file):
    """The rows of benchmark.csv as a DataFrame, text "" where it is missing."""
    text = pd.read_csv(file, dtype=str, keep_default_na=False)
    return text.assign(**{key: pd.to_numeric(text[key]) for key in NUMBERS})


def _ratio(row):
    """`1.520 (1.366-1.890)`; "" where it was not measured."""
    if pd.isna(row.ratio):
        return ""
    return f"{rounded(row.ratio, 3)} ({rounded(row.low, 3)}-{rounded(row.high, 3)})"


def machine_words(rows):
    """The machines, dates and undisturbed rounds behind some rows, in one sentence."""
    machines = dict.fromkeys(
        f"{r.machine}, {r.threads} threads, torch {r.torch}" for r in rows.itertuples()
    )
    days, rounds = sorted(set(rows["date"])), sorted(set(rows["rounds"].dropna().astype(int)))
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    counts = " to ".join(
        dict.fromkeys(str(count) for count in (rounds or [0])[:: max(1, len(rounds) - 1)])
    )
    return f"{' / '.join(machines)}; {when}; {counts} undisturbed rounds behind each figure."


def benchmark_page(rows):
    """results/benchmark.md as text."""
    parts = [
        "# Speed",
        "Made by `python scripts/tables.py` from a CSV file of `python scripts/benchmark` (docs/benchmark.md).",
    ]
    header = ["network", "attention", "what", "variant", "images/s", "CPU-ms/image", "peak MB"]
    header += ["ratio (lowest-highest)", ""]
    for part, group in rows.groupby("part", sort=False):
        cells = [
            [row.network, row.attention, row.what, row.variant, rounded(row.images_per_second, 1)]
            + [
                rounded(1000 * row.cpu_seconds_per_image, 3),
                rounded(row.peak_mb, 0),
                _ratio(row),
                row.remark,
            ]
            for row in group.itertuples()
        ]
        cells = [["" if cell == DASH else cell for cell in line] for line in cells]
        parts += [f"## {part}", machine_words(group), pipes(header, cells, labels=4)]
    return "\n\n".join(parts) + "\n"


def speed_paragraph(rows):
    """How much faster whole epochs are than those of a plain loop, and on what that was measured."""
    epochs = rows[
        (rows["part"] == "epoch") & (rows["variant"] != "reference") & rows["ratio"].notna()
    ]
    if epochs.empty:
        return "Not measured yet."
    words = [
        f"{NETWORK_TITLE.get(name, name)} {', '.join(f'{rounded(r.ratio, 2)} ({r.variant})' for r in group.itertuples())}"
        for name, group in epochs.groupby("network", sort=False)
    ]
    return (
        f"Whole epochs, images/s over those of a plain PyTorch loop: {'; '.join(words)}. {machine_words(epochs)} "
        "Attention modules, evaluation, memory: `results/benchmark.md`."
    )
