"""Wrong verdicts, power and coverage of the statistics of this package, measured by simulation.

Simulated runs are independent and normal with a deviation of 0.25 points, about that of CIFAR-10
networks over seeds, rounded to 0.01 as a test set of 10,000 images implies. A simulated verdict
rests on the corrected p-value alone: the interval, narrower than 95 % where pairs are few, hardly
ever decides against it.
"""

import math

import numpy as np
import pandas as pd

from lcm.reporting.claims import families
from lcm.reporting.render import pipes
from lcm.reporting.statistics import (
    ALPHA,
    CONTRADICTED,
    MINIMUM_PAIRS,
    SUPPORTED,
    bca_interval,
    holm,
    pairs_to_reach,
)

DEVIATION = 0.25
DIFFERENCES, PAIRS, FAMILY = (-0.2, 0, 0.2, 0.5, 1), (3, 6, 10, 15), 6
SEEDS = (6, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200)  # of whole claims
SHOWN = (10, 20)  # the seeds whose shares are printed
PATTERNS = 4096  # sign flips: all up to 13 pairs, random ones above


def sign_patterns(pairs):
    """Sign flips as a matrix (patterns, pairs); a pattern and its negative count once."""
    if 2 ** (pairs - 1) <= PATTERNS:
        # Bit j of the number i is the sign of pair j in pattern i. Below 2**(pairs - 1) the
        # last pair's bit is 0, its sign +: of each pattern and its negative that one is here.
        return 1 - 2 * (np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs) & 1)
    signs = np.random.default_rng(pairs).choice((-1, 1), (PATTERNS, pairs))
    signs[0] = 1  # the observed one
    return signs


def flip_p(differences):
    """`statistics.sign_flip_p` of many samples at once: (..., pairs) -> (...)."""
    # Half the memory of float64. Equal sums then differ by some 1e-7 of the sum of |d|; unequal
    # ones, of the simulated accuracies, differ by more than the 1e-5 allowed here.
    d = np.asarray(differences, dtype=np.float32)
    flat, patterns = d.reshape(-1, d.shape[-1]), sign_patterns(d.shape[-1]).astype(np.float32)
    observed = np.abs(flat.sum(axis=1)) - 1e-5 * np.abs(flat).sum(axis=1)
    sums = flat @ patterns.T  # (samples, patterns): of 2,000 samples 32 MB
    return (np.abs(sums) >= observed[:, None]).mean(axis=1).reshape(d.shape[:-1])


def sides(differences, least=0.0, most=math.inf):
    """(1 where the mean lies between `least` and `most`, -1 outside; the p-value of that)."""
    mean = differences.mean(axis=-1)
    at_most = flip_p(differences - most) if most < math.inf else 0.0
    # The larger p-value of the bounds, as in `statistics.statement_p`.
    return (
        np.where((mean > least) & (mean < most), 1, -1),
        np.maximum(flip_p(differences - least), at_most),
    )


def simulated_differences(difference, shape, rng):
    """Paired differences of two simulated arms whose true means are `difference` apart."""
    a, b = (rng.normal(92 + mean, DEVIATION, shape).round(2) for mean in (difference, 0))
    return a - b


def simulate(difference, pairs, comparisons=1, repetitions=2000):
    """Shares of verdicts in families of `comparisons`: (supported, contradicted, families with
    at least one of them)."""
    # Each cell has a stream of its own, so that none changes when others are added. NumPy's
    # seeds are not negative, differences are: hence + 10.
    rng = np.random.default_rng([0, pairs, comparisons, round(1000 * (difference + 10))])
    side, p = sides(simulated_differences(difference, (repetitions, comparisons, pairs), rng))
    # (repetitions, comparisons): 1 supported, -1 contradicted.
    words = np.where(holm(p) <= ALPHA, side, 0)
    return (words > 0).mean(), (words < 0).mean(), (words != 0).any(axis=1).mean()


def claim_shares(claims, accuracies, seeds, repetitions=200):
    """{claim's id: (share supported, share contradicted)} of whole claims, each arm with `seeds`.

    accuracies: {(data, model, attention): the true one}.
    """
    rng = np.random.default_rng(seeds)
    # (repetitions, seeds) for each arm, drawn once: comparisons that share an arm depend on
    # each other, as those of real runs do.
    runs = {
        arm: rng.normal(mean, DEVIATION, (repetitions, seeds)).round(2)
        for arm, mean in accuracies.items()
    }
    side, p, adjusted, differences = {}, {}, {}, {}
    for family in families(claims).values():
        for s in family:
            differences[s] = runs[s.data, s.model, s.a] - runs[s.data, s.model, s.b]
            # (repetitions,) each, of differences (repetitions, seeds).
            side[s], p[s] = sides(differences[s], s.least, s.most)
        # (repetitions, comparisons of the table)
        columns = holm(np.stack([p[s] for s in family], axis=1))
        adjusted |= {  # the larger p-value of two tables, as `judge_statements` has it
            s.question: np.maximum(own, adjusted.get(s.question, 0))
            for s, own in zip(family, columns.T, strict=True)
        }
    shares = {}
    for claim in claims:
        own = claim["statements"]
        if claim["holds_if"] == "every":
            # (statements, repetitions). As in `statistics.every`: all supported, or one
            # contradicted, also by its p-value corrected over the claim's own statements.
            signs = np.stack([np.where(adjusted[s.question] <= ALPHA, side[s], 0) for s in own])
            alone = holm(np.stack([p[s] for s in own], axis=1)).T <= ALPHA
            words = (signs > 0).all(axis=0), ((signs < 0) & alone).any(axis=0)
        elif claim["holds_if"] == "on_average":
            # As in `claims._on_average`: one test, of the mean of each seed, uncorrected.
            signs, average_p = sides(np.mean([differences[s] for s in own], axis=0))
            words = (average_p <= ALPHA) & (signs > 0), (average_p <= ALPHA) & (signs < 0)
        else:
            continue
        shares[claim["id"]] = words[0].mean(), words[1].mean()
    return shares


def chances(claims, accuracies, repetitions=1000):
    """The DataFrame of power.csv: for each claim the fewest of SEEDS that support it with a chance
    of 0.5 and of 0.8 if the paper's differences are the true ones."""
    by_seeds = {n: claim_shares(claims, accuracies, n, repetitions) for n in SEEDS}

    def fewest(claim, chance):
        # Were the paper's numbers true, such a claim would be false, and support an error.
        if claim["contradicts_itself"]:
            return "never"
        enough = [n for n in SEEDS if by_seeds[n][claim["id"]][0] >= chance]
        return str(enough[0]) if enough else f"over {SEEDS[-1]}"

    rows = [(c["id"], fewest(c, 0.5), fewest(c, 0.8)) for c in claims if c["statements"]]
    return pd.DataFrame(rows, columns=["claim", "half", "four_fifths"])


def coverage(pairs, repetitions=1000):
    """The share of 95 % BCa intervals that contain the true mean difference."""
    rng = np.random.default_rng([0, pairs])
    intervals = map(bca_interval, simulated_differences(0.5, (repetitions, pairs), rng))
    return np.mean([low - 1e-9 <= 0.5 <= high + 1e-9 for low, high in intervals])


def _share(*values):
    return " / ".join(f"{100 * value:.1f}" for value in values) + " %"


def _whole_claims(claims, accuracies, rows, repetitions):
    """A heading and a table for the claims of each of the paper's tables."""
    parts = []
    found = {
        words.format(n): claim_shares(claims, true, n, repetitions)
        for words, true in {
            "paper true, {} seeds": accuracies,
            # Any accuracy will do: only differences are tested.
            "no difference, {}": dict.fromkeys(accuracies, 90),
        }.items()
        for n in SHOWN
    }
    fewest = rows.set_index("claim")
    for table, family in families(claims).items():
        parts.append(
            f"### Table {table}: {len(family)} comparisons, of which no single one can be "
            f"significant with fewer than {pairs_to_reach(len(family))} seeds (a claim about their "
            f"average is one test: {MINIMUM_PAIRS} seeds)"
        )
        lines = [
            [f"{number} {claim['id']}", *fewest.loc[claim["id"]]]
            + [_share(*shares[claim["id"]]) for shares in found.values()]
            for number, claim in enumerate(claims, 1)
            if {table} & {s.table for s in claim["statements"]}
        ]
        parts.append(pipes(["claim", "seeds for 0.5", "seeds for 0.8", *found], lines))
    return parts


def power_page(claims, accuracies, rows, repetitions=2000, of_claims=1000):
    """results/power.md as text; `rows`: what `chances` returned."""
    count = [f"{n} seeds" for n in PAIRS]
    # As many simulated comparisons as in the table without correction.
    families_of_six = repetitions // FAMILY

    def one_size(comparisons, repetitions):
        return [
            [f"{d:+g} points" if d else "none"]
            + [_share(*simulate(d, n, comparisons, repetitions)[:2]) for n in PAIRS]
            for d in DIFFERENCES
        ]

    any_wrong = [_share(simulate(0, n, FAMILY, families_of_six)[2]) for n in PAIRS]
    parts = [
        "# Error rates and power of the verdicts",
        "Made by `python scripts/power.py` from simulated runs, not from training: each run has a "
        f"deviation of {DEVIATION} points (assumed, the same on every data set), independent, "
        "rounded to 0.01. A share is uncertain by up to "
        + ", ".join(
            # 1.96 standard errors of a share of one half, where they are largest.
            f"{100 * 1.96 * 0.5 / n**0.5:.1f} points with {n} repetitions"
            for n in (repetitions, of_claims, families_of_six)
        )
        + f"; where no number is given there are {repetitions}. A cell has two shares: "
        f"`{SUPPORTED}` / `{CONTRADICTED}`.",
        "## One comparison: is A above B?\n\n"
        "Without a true difference both shares are wrong verdicts. Where A is below B, "
        f"`{SUPPORTED}` is wrong; where A is above B, `{CONTRADICTED}` is. With fewer than "
        f"{MINIMUM_PAIRS} seeds there is no verdict.",
        pipes(["true difference", *count], one_size(1, repetitions)),
        f"## The same with Holm's correction over {FAMILY} comparisons\n\n"
        f"All {FAMILY} with the same true difference ({families_of_six} families). With 6 seeds no "
        "corrected p-value can reach 0.05.",
        pipes(["true difference", *count], one_size(FAMILY, families_of_six)),
        "Families with at least one wrong verdict of either kind, no true difference:",
        pipes(["", *count], [["share", *any_wrong]]),
        "## Whole claims\n\n"
        f"All arms of a claim have the same seeds; {of_claims} repetitions. First: the fewest "
        f"seeds, of {', '.join(map(str, SEEDS))}, that support a claim with a chance of 0.5 "
        "and of 0.8 if the paper's own numbers are the true accuracies (never, where "
        "these contradict the claim). Then: both shares, supported / contradicted, with "
        f"{SHOWN[0]} and {SHOWN[1]} seeds, if the paper's numbers are true and if no "
        f"module changes anything. In the second case every `{SUPPORTED}` is wrong, except "
        "of claims that two modules are almost the same.",
    ]
    parts += _whole_claims(claims, accuracies, rows, of_claims)
    parts += [
        "## Coverage of the 95 % BCa interval\n\n"
        "How often it contains the true difference. It is too narrow where seeds are few, so no "
        "verdict rests on it alone.",
        pipes(["", *count], [["coverage", *(_share(coverage(n, repetitions)) for n in PAIRS)]]),
    ]
    return "\n\n".join(parts) + "\n"
