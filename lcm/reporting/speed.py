"""What the README shows of results/benchmark.md, the table that scripts/benchmark wrote."""

import re
from pathlib import Path

from lcm.reporting.render import DASH, pipes, rounded
from lcm.reporting.selection import ATTENTIONS

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


def read_benchmark(results):
    """({(network, attention, what, variant): "1.52 (1.37-1.89)"}, what its sections say of their machine) of benchmark.md.

    Two decimals: the rounds scatter far more than the third one says. ({}, []) without that file.
    """
    file = Path(results) / "benchmark.md"
    if not file.exists():
        return {}, []
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    ratios = {tuple(row[:4]): re.sub(r"\d+\.\d+", lambda n: rounded(float(n[0]), 2), row[7]) for row in cells}
    return ratios, [line for line in lines if "undisturbed rounds" in line]


def machine_words(sections):
    """The machines, dates and undisturbed rounds of all sections, in one sentence."""
    machines, dates, rounds = zip(*(line.split("; ")[:3] for line in sections), strict=True)
    days = sorted(set(dates))
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    total = sum(int(words.split()[0]) for words in rounds)
    return f"{' / '.join(dict.fromkeys(machines))}; {when}; {total} undisturbed rounds in all."


def speed_block(results):
    """Ratios to a plain PyTorch loop, and each module's cost over no attention."""
    ratios, sections = read_benchmark(results)
    if not ratios:
        return "Not measured yet: `python scripts/benchmark --out results/benchmark.md`."
    rows = [[name, ratios.get((key[0], "none", *key[1:]), DASH)] for name, key in ROWS.items()]
    speed = pipes(["", "ratio (lowest-highest round)"], rows)
    others = [attention for attention in ATTENTIONS if attention != "none"]
    rows = [
        [name, *(ratios.get((network, other, "attention", variant), DASH).split(" ")[0] for other in others)]
        for name, (network, variant) in MODULES.items()
    ]
    modules = pipes(["step time over none", *others], rows)
    return f"{machine_words(sections)}\n\n{speed}\n\n{modules}"
