"""The statistics of paired runs: two arms trained on the same seeds, compared seed by seed.

Arms of one seed share the initialisation of the backbone, the order of the images and their augmentation; within a pair only the
attention differs. The methods and their sources:

- several paired seeds, the difference with its uncertainty, and the probability that one arm beats the other on a pair:
  Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", MLSys 2021.
- 95 % interval of the mean difference: BCa bootstrap, Efron, "Better Bootstrap Confidence Intervals", JASA 82, 1987.
  With few pairs it is too narrow (`results/power.md` has its measured coverage), so no verdict rests on it alone.
- p-value: exact two-sided sign-flip permutation test of the mean, Fisher, "The Design of Experiments", 1935, section 21.
  It assumes only that differences are symmetric about their mean under the null hypothesis.
- correction over all comparisons of one table, those without runs too: Holm, "A Simple Sequentially Rejective Multiple Test
  Procedure", Scand. J. Statist. 6, 1979; valid whatever the dependence between comparisons that share an arm.
- a claim that needs each of several comparisons: its `supported` is an intersection-union test and needs no further correction
  (Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics 24, 1982);
  `contradicted` needs only one of them, so those p-values are corrected over the claim's own comparisons (Holm again).
"""

import bisect
from typing import NamedTuple

import numpy as np
from scipy import stats

ALPHA = 0.05
MINIMUM_PAIRS = 6  # 2 / 2**5 = 0.0625: no exact two-sided test of fewer pairs can reach 0.05
ENUMERATED = 20  # pairs up to which all 2**n sign flips are enumerated
RESAMPLES = 9999

SUPPORTED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE = (
    "supported",
    "contradicted",
    "inconclusive",
    "untestable",
)
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, UNTESTABLE)


class Comparison(NamedTuple):
    """A minus B over n pairs; `differences` are the pairs' own, in the order given.

    `deviation` is the sample standard deviation of the differences, `low` and `high` the ends of the 95 % interval of their
    mean, `p` the two-sided p-value, `wins` the share of pairs in which A is above B (a tie counts half). None where the pairs
    do not define it: everything without pairs, the deviation below two, the interval below three.
    """

    n: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    wins: float | None = None
    differences: tuple = ()


def compare(differences, null=0.0):
    """Compare two arms by their paired differences; the p-value is that of a mean difference of `null`."""
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"differences must be a list of finite numbers, not {differences}")
    if not len(d):
        return Comparison(0)
    low, high = bca_interval(d) if len(d) > 2 else (None, None)
    return Comparison(
        n=len(d),
        mean=float(d.mean()),
        deviation=float(d.std(ddof=1)) if len(d) > 1 else None,
        low=low,
        high=high,
        p=sign_flip_p(d - null),
        wins=float(((d > 0) + (d == 0) / 2).mean()),
        differences=tuple(d.tolist()),
    )


def bca_interval(differences, level=0.95):
    """The BCa bootstrap interval (low, high) of the mean; the resamples are drawn with a fixed seed.

    Differences that are all equal (to rounding) have no spread to resample: the interval is that one value.
    """
    d = np.asarray(differences, dtype=float)
    if np.ptp(d) <= 1e-9 * max(1.0, np.abs(d).max()):
        return float(d.mean()), float(d.mean())
    generator = np.random.default_rng(0)
    drawn = stats.bootstrap(
        (d,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="BCa", rng=generator
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def sign_flip_p(differences):
    """Two-sided p-value of the sign-flip test: the share of the 2**n sign patterns with a mean at least as far from 0.

    Exact up to 20 pairs; above, 9,999 random patterns with a fixed seed (the observed one counted in). Sums that differ by
    rounding alone count as equal. All differences zero: 1.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) > ENUMERATED:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (RESAMPLES, len(d)))
        sums = np.append(signs @ d, d.sum())
    else:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()))


def holm(p_values):
    """Holm's adjusted p-values, in the order given. None, a comparison without runs, stays None and counts in the family."""
    adjusted = list(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(adjusted) - rank) * p))
        adjusted[index] = highest
    return adjusted


def verdict(comparison, adjusted_p, null=0.0):
    """The verdict on the statement `A - B > null`.

    untestable: fewer than 6 pairs. supported: the interval lies above `null` and the adjusted p-value is at most 0.05.
    contradicted: the same below `null`. inconclusive: everything else.
    """
    if comparison.n < MINIMUM_PAIRS:
        return UNTESTABLE
    if adjusted_p <= ALPHA and comparison.low > null:
        return SUPPORTED
    if adjusted_p <= ALPHA and comparison.high < null:
        return CONTRADICTED
    return INCONCLUSIVE


def every(parts):
    """The verdict on a statement that holds only where each of its parts holds.

    `parts`: (Comparison, its p-value adjusted over its table, null) of each. The worst verdict of the parts, but contradicted only
    where a part stays contradicted with its p-value adjusted over these parts alone.
    """
    parts = list(parts)
    words = [verdict(*part) for part in parts]
    own = holm([comparison.p for comparison, _, _ in parts])
    if any(
        word == CONTRADICTED and verdict(comparison, p, null) == CONTRADICTED
        for word, (comparison, _, null), p in zip(words, parts, own, strict=True)
    ):
        return CONTRADICTED
    if UNTESTABLE in words or not words:
        return UNTESTABLE
    return SUPPORTED if set(words) == {SUPPORTED} else INCONCLUSIVE


def pairs_to_reach(comparisons=1):
    """The fewest pairs with which the smallest of `comparisons` p-values can survive Holm's correction."""
    n = MINIMUM_PAIRS
    while 2 / 2**n * comparisons > ALPHA:
        n += 1
    return n


def seeds_needed(difference, deviation, comparisons=1, power=0.8):
    """How many pairs show a mean `difference` with probability `power`, given the deviation of the paired differences.

    By the paired t-test's power (noncentral t; Cohen, "Statistical Power Analysis", 1988, chapter 2) at the level that the
    first of `comparisons` must reach, and never fewer than an exact test needs at all. None for no difference, for an
    unknown deviation, and where 10,000 pairs are too few.
    """
    if deviation is None or not difference:
        return None
    floor = pairs_to_reach(comparisons)
    if deviation == 0:
        return floor

    def reached(n):
        critical = stats.t.ppf(1 - ALPHA / comparisons / 2, n - 1)
        return stats.nct.sf(critical, n - 1, abs(difference) / deviation * n**0.5)

    candidates = range(floor, 10_001)
    position = bisect.bisect_left(candidates, power, key=reached)  # power grows with n
    return candidates[position] if position < len(candidates) else None
