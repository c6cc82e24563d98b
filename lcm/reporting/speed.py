"""results/benchmark.csv, which scripts/benchmark writes, as the page benchmark.md and as the tables of the README."""

from pathlib import Path

import pandas as pd

from lcm.reporting.protocol import ATTENTIONS, in_order
from lcm.reporting.render import DASH, pipes, rounded

ROWS = {  # what the README calls it: (network, what, variant)
    "whole epochs of ResNet-20, images/s": ("resnet20", "epoch", "fp32"),
    "the same with `compile=true`": ("resnet20", "epoch", "fp32 compiled"),
    "whole epochs of DenseNet-40, images/s": ("densenet40", "epoch", "fp32"),
    "batches of 64, images/s, against DataLoader with PIL": ("-", "assembly", "project"),
    "evaluation of ResNet-20, images/s": ("resnet20", "evaluation", "fp32"),
    "evaluation of DenseNet-40, images/s": ("densenet40", "evaluation", "fp32"),
    "time from the command to the first step, against a plain Hydra application": ("resnet20", "startup", "train.py"),
    "DenseNet-100 with `model.memory=linear`: peak memory": ("densenet100", "memory", "memory=linear"),
    "DenseNet-100 with `model.memory=linear`: images/s of the step": ("densenet100", "step", "memory=linear"),
}
MODULES = {
    "ResNet-20": ("resnet20", "fp32"),
    "ResNet-20, `compile=true`": ("resnet20", "fp32 compiled"),
    "DenseNet-40": ("densenet40", "fp32"),
}
NUMBERS = ("images_per_second", "cpu_seconds_per_image", "peak_mb", "ratio", "low", "high", "rounds", "disturbed")


def read_benchmark(file):
    """The rows of benchmark.csv as a DataFrame, text "" where it is missing; no rows without that file."""
    if not Path(file).exists():
        return pd.DataFrame(columns=["machine"])
    text = pd.read_csv(file, dtype=str, keep_default_na=False)
    return text.assign(**{key: pd.to_numeric(text[key]) for key in NUMBERS})


def _ratio(row, places=2):
    """`1.52 (1.37-1.89)`; "" where it was not measured."""
    if pd.isna(row.ratio):
        return ""
    return f"{rounded(row.ratio, places)} ({rounded(row.low, places)}-{rounded(row.high, places)})"


def machine_words(rows):
    """The machines, dates and undisturbed rounds behind some rows, in one sentence."""
    machines = dict.fromkeys(f"{r.machine}, {r.threads} threads, torch {r.torch}" for r in rows.itertuples())
    days, rounds = sorted(set(rows["date"])), sorted(set(rows["rounds"].dropna().astype(int)))
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    counts = " to ".join(dict.fromkeys(str(count) for count in (rounds or [0])[:: max(1, len(rounds) - 1)]))
    return f"{' / '.join(machines)}; {when}; {counts} undisturbed rounds behind each figure."


def benchmark_page(rows):
    """results/benchmark.md as text."""
    parts = [
        "# Speed",
        "Made by `python scripts/tables.py` from a CSV file of `python scripts/benchmark` (docs/benchmark.md).",
    ]
    header = [
        "network",
        "attention",
        "what",
        "variant",
        "images/s",
        "CPU-ms/image",
        "peak MB",
        "ratio (lowest-highest)",
        "",
    ]
    for part, group in rows.groupby("part", sort=False):
        cells = [
            [row.network, row.attention, row.what, row.variant, rounded(row.images_per_second, 1)]
            + [rounded(1000 * row.cpu_seconds_per_image, 3), rounded(row.peak_mb, 0), _ratio(row, 3), row.remark]
            for row in group.itertuples()
        ]
        cells = [["" if cell == DASH else cell for cell in line] for line in cells]
        parts += [f"## {part}", machine_words(group), pipes(header, cells, labels=4)]
    return "\n\n".join(parts) + "\n"


def speed_block(results):
    """Ratios to a plain PyTorch loop, and each module's cost over no attention."""
    rows = read_benchmark(Path(results) / "benchmark.csv")
    if rows.empty:
        return "Not measured yet: `python scripts/benchmark`."
    ratios = {(row.network, row.attention, row.what, row.variant): _ratio(row) or DASH for row in rows.itertuples()}
    speed = [[name, ratios.get((key[0], "none", *key[1:]), DASH)] for name, key in ROWS.items()]
    others = in_order({*ATTENTIONS, *rows["attention"]} - {"none", "all"})
    modules = [
        [name, *(ratios.get((network, other, "attention", variant), DASH).split(" ")[0] for other in others)]
        for name, (network, variant) in MODULES.items()
    ]
    tables = pipes(["", "ratio (lowest-highest round)"], speed), pipes(["step time over none", *others], modules)
    return "\n\n".join([machine_words(rows), *tables])
