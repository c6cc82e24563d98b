"""False verdicts, power and coverage of the statistics of this package, measured by simulation.

Simulated runs are independent and normal with a deviation of 0.25 points, about that of CIFAR-10 networks over seeds, rounded to
0.01 as a test set of 10,000 images implies. Real pairs share part of their noise, which increases the power.
"""

import numpy as np

from lcm.reporting.render import pipes
from lcm.reporting.statistics import (
    ALPHA,
    SUPPORTED,
    Comparison,
    bca_interval,
    compare,
    holm,
    sign_flip_p,
    verdict,
)

DIFFERENCES, DEVIATION, PAIRS, FAMILY = (0, 0.2, 0.5, 1), 0.25, (3, 6, 10, 15), 6


def simulated_differences(difference, pairs, rng):
    """`pairs` paired differences of two simulated arms whose true means are `difference` apart."""
    arms = rng.normal([92 + difference, 92], DEVIATION, (pairs, 2)).round(2)
    return arms[:, 0] - arms[:, 1]


def simulate(difference, pairs, comparisons=1, repetitions=1000, seed=0):
    """(share of comparisons, share of families with at least one) that are `supported`, for families of `comparisons`."""
    rng = np.random.default_rng([seed, pairs, comparisons, round(1000 * difference)])
    supported = np.zeros((repetitions, comparisons), dtype=bool)
    for family in supported:
        differences = [simulated_differences(difference, pairs, rng) for _ in family]
        adjusted = holm([sign_flip_p(d) for d in differences])
        for index, (d, p) in enumerate(zip(differences, adjusted, strict=True)):
            # where p is too large the interval decides nothing: skip the bootstrap
            comparison = compare(d) if p <= ALPHA else Comparison(pairs)
            family[index] = verdict(comparison, p) == SUPPORTED
    return float(supported.mean()), float(supported.any(axis=1).mean())


def coverage(pairs, repetitions=1000, seed=0):
    """The share of 95 % BCa intervals that contain the true mean difference."""
    rng = np.random.default_rng([seed, pairs])
    inside = 0
    for _ in range(repetitions):
        low, high = bca_interval(simulated_differences(0.5, pairs, rng))
        inside += low - 1e-9 <= 0.5 <= high + 1e-9
    return inside / repetitions


def power_page(repetitions=2000):
    """results/power.md as text."""

    def table(first, rows):
        return pipes([first, *(f"{n} seeds" for n in PAIRS)], rows)

    def share(value):
        return f"{100 * value:.1f} %"

    def shares(comparisons, count):
        return [
            [f"{d} points", *(share(simulate(d, n, comparisons, count)[0]) for n in PAIRS)]
            for d in DIFFERENCES
        ]

    families = repetitions // FAMILY
    parts = [
        "# Error rates and power of the verdicts",
        "Made by `python scripts/power.py` from simulated runs, not from training: two arms with the true difference of "
        f"the first column, each run with a deviation of {DEVIATION} points, independent, rounded to 0.01. A share from "
        f"{repetitions} repetitions is uncertain by up to {100 * 1.96 * 0.5 / repetitions**0.5:.1f} points.",
        "## Share of verdicts `supported`, one comparison\n\n"
        "The first row has the wrong verdicts; with fewer than 6 seeds the verdict is always `untestable`.",
        table("true difference", shares(1, repetitions)),
        f"## The same with Holm's correction over {FAMILY} comparisons\n\n"
        f"All {FAMILY} with the same true difference ({families} families). With 6 seeds no corrected p-value can reach 0.05.",
        table("true difference", shares(FAMILY, families)),
        "Families with at least one wrong verdict `supported`, no true difference:",
        table("", [["share", *(share(simulate(0, n, FAMILY, families)[1]) for n in PAIRS)]]),
        "## Coverage of the 95 % BCa interval\n\n"
        "How often it contains the true difference. It is too narrow for few seeds, which is why no verdict rests on it alone.",
        table("", [["coverage", *(share(coverage(n, repetitions)) for n in PAIRS)]]),
    ]
    return "\n\n".join(parts) + "\n"
