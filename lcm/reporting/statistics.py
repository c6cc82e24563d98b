"""The statistics of paired runs: two arms trained on the same seeds, compared seed by seed.

Arms of one seed share the initialisation of the backbone, the order of the images and their
augmentation; within a pair only the attention differs. The methods and their sources:

- several paired seeds, the difference with its uncertainty, and the probability that one arm beats
  the other on a pair: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks",
  MLSys 2021.
- 95 % interval of the mean difference: BCa bootstrap, Efron, "Better Bootstrap Confidence
  Intervals", JASA 82, 1987. With few pairs it is too narrow (`results/power.md` has its measured
  coverage), so no verdict rests on it alone.
- p-value: two-sided sign-flip permutation test of the mean, Fisher, "The Design of Experiments",
  1935, section 21; exact up to 20 pairs. It assumes only that differences are symmetric about their
  mean under the null hypothesis.
- what the runs exclude: that test inverted, Hartigan, "Using Subsample Values as Typical Values",
  JASA 64, 1969.
- "almost the same": two one-sided tests, Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987, each at
  2.5 %, the level of every other verdict in its direction.
- correction over a planned family, comparisons without runs included: Holm, "A Simple Sequentially
  Rejective Multiple Test Procedure", Scand. J. Statist. 6, 1979; valid whatever the dependence
  between comparisons that share an arm.
- a claim that needs each of several comparisons: its `supported` is an intersection-union test and
  needs no further correction (Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling",
  Technometrics 24, 1982); `contradicted` needs only one of them, so those p-values are corrected
  over the claim's own comparisons (Holm again).
- a run that diverged counts as the worst of its arm, and a verdict has to hold as well where its
  pair is lost by as much as any pair differs.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats

ALPHA = 0.05
MINIMUM_PAIRS = 6  # 2 / 2**5 = 0.0625: no exact two-sided test of fewer pairs can reach 0.05
ENUMERATED = 20  # pairs up to which all 2**n sign flips are enumerated
RESAMPLES = 9999

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"
NOT_TESTED = "not tested yet"
VERDICTS = (SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)


class Comparison(NamedTuple):
    """A minus B over n pairs, and the statement about it: `least` < A - B < `most` (points).

    `differences` are the pairs' own, in the order given, `deviation` their sample standard
    deviation, `low` and `high` the ends of the 95 % interval of their mean, `p` the two-sided
    p-value, `wins` the share of pairs in which A is above B (a tie counts half, a diverged run
    loses). None where the pairs do not define it: everything without pairs, the deviation below
    two, the interval below three.
    """

    n: int
    mean: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    wins: float | None = None
    differences: tuple = ()
    least: float = 0.0
    most: float = math.inf


def compare(differences, least=0.0, most=math.inf, lost=None):
    """Compare two arms by their paired differences, with the statement `least` < A - B < `most`.

    lost: for each pair -1 where A diverged, +1 where B did, 0 where neither or both did.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"differences must be a list of finite numbers, not {differences}")
    if not len(d):
        return Comparison(0, least=least, most=most)
    lost = np.zeros(len(d)) if lost is None else np.asarray(lost, dtype=float)
    low, high = bca_interval(d) if len(d) > 2 else (None, None)
    p = statement_p(d, least, most)
    # For a diverged run `differences` have the worst of its arm, which may still be too good.
    # So the verdict has to hold as well with its pair lost by the largest difference of any
    # pair. If that moves the mean across a bound, neither direction is shown: p = 1. No size of
    # a loss is "almost the same".
    if lost.any():
        harsh = np.where(lost, lost * np.abs(d).max(), d)
        same_side = most == math.inf and (harsh.mean() > least) == (d.mean() > least)
        p = max(p, statement_p(harsh, least)) if same_side else 1.0
    wins = np.where(lost, lost > 0, (d > 0) + (d == 0) / 2)
    return Comparison(
        n=len(d),
        mean=float(d.mean()),
        deviation=float(d.std(ddof=1)) if len(d) > 1 else None,
        low=low,
        high=high,
        p=p,
        wins=float(wins.mean()),
        differences=tuple(d.tolist()),
        least=least,
        most=most,
    )


def statement_p(d, least=0.0, most=math.inf):
    """The p-value for or against a mean difference between `least` and `most`.

    The larger p-value of the two bounds: inside, both have to be rejected; outside, the larger one
    is that of the bound that was crossed, which is the nearer.
    """
    # A two-sided p of 5 % is a one-sided one of 2.5 %: inside, these are Schuirmann's two
    # tests. Without an upper bound there is one test; 0 is never the larger p.
    at_most = sign_flip_p(d - most) if most < math.inf else 0.0
    return max(sign_flip_p(d - least), at_most)


def bca_interval(differences):
    """The 95 % BCa bootstrap interval (low, high) of the mean, with a fixed seed.

    Differences that are all equal (to rounding) have no spread to resample: the interval is that
    one value.
    """
    d = np.asarray(differences, dtype=float)
    # BCa's acceleration divides by the spread of the leave-one-out means. Without a spread
    # SciPy's ends are NaN; with one of rounding alone the lower end may be above the upper.
    if np.ptp(d) <= 1e-9 * max(1.0, np.abs(d).max()):
        return float(d.mean()), float(d.mean())
    # A fixed seed: tables, claims and report compute it anew, and have to print the same.
    drawn = stats.bootstrap(
        (d,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - ALPHA,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def sign_flip_p(differences):
    """Two-sided p-value of the sign-flip test: the share of sign patterns with as large a mean.

    Exact up to 20 pairs; above, 9,999 random patterns with a fixed seed (the observed one counted
    in). Sums that differ by rounding alone count as equal. All differences zero: 1.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) > ENUMERATED:
        # The observed pattern is one of those counted: p is never 0, and the test keeps its
        # level (Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010).
        sums = np.append(_random_signs(len(d)) @ d, d.sum())
    else:
        # (2**k,): the sums of all patterns of the first k differences; no more than 8 MB, where
        # a matrix of the patterns of 20 pairs would take 20 times as much.
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
    # Accuracies have few decimals, so that many patterns have the same sum but for rounding. If
    # these were taken for smaller ones, p would be too small.
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9 * np.abs(d).sum()))


def _random_signs(pairs):
    # (patterns, pairs); with more than 20 pairs none of these has one sign alone.
    return np.random.default_rng(0).choice((-1.0, 1.0), (RESAMPLES, pairs))


def holm(p_values):
    """Holm's adjusted p-values, of many families at once too: (..., comparisons). None, a
    comparison without runs, counts and becomes NaN."""
    p = np.asarray(p_values, dtype=float)
    # NaN sorts last, as if p were 1: the comparisons with runs get the largest factors, and no
    # p-value that comes later can raise theirs.
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    # The smallest p times the number of comparisons, the next one times one less, and so on; a
    # later one is never smaller than an earlier one.
    rising = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(rising, 1), -1)
    return adjusted


def verdict(comparison, adjusted_p):
    """The verdict on a comparison's statement; `adjusted_p` is None where it is not to be tested.

    not tested yet: fewer than 6 pairs. supported: the interval lies where the statement says and
    the adjusted p-value is at most 0.05. contradicted: the same outside. inconclusive: all else.
    """
    if comparison.n < MINIMUM_PAIRS or adjusted_p is None:
        return NOT_TESTED
    # The p-value keeps the error rate but has no direction; the interval, too narrow with few
    # pairs, gives the direction. A bound that is an end of the interval decides nothing.
    low, high, least, most = comparison.low, comparison.high, comparison.least, comparison.most
    if adjusted_p <= ALPHA and least < low and high < most:
        return SUPPORTED
    if adjusted_p <= ALPHA and (high < least or low > most):
        return CONTRADICTED
    return INCONCLUSIVE


def every(parts):
    """The verdict on a claim that holds only where each of its parts holds.

    `parts`: (Comparison, its p-value adjusted over its table) of each. The worst verdict of the
    parts, but contradicted only where a part stays so with its p-value adjusted over these alone.
    """
    parts = list(parts)
    words = [verdict(*part) for part in parts]
    # One contradicted part is enough, so that k parts are k chances of a false one: hence their
    # own correction. `supported` needs all parts, which makes a false one rarer, not likelier.
    own = holm([comparison.p for comparison, _ in parts])
    # Before "not tested yet": one part refutes the claim, whatever the others will say.
    if any(
        word == CONTRADICTED and verdict(comparison, p) == CONTRADICTED
        for word, (comparison, _), p in zip(words, parts, own, strict=True)
    ):
        return CONTRADICTED
    if NOT_TESTED in words or not words:
        return NOT_TESTED
    return SUPPORTED if set(words) == {SUPPORTED} else INCONCLUSIVE


def not_excluded(differences, level=1 - ALPHA):
    """(largest loss, largest gain) of A over B that the sign-flip test does not reject at `level`.

    Hartigan 1969: a mean difference m is rejected from below where at most alpha 2**(n - 1) - 1 of
    the 2**n - 1 means of subsets are at most m; above 20 pairs by the random patterns of the
    p-value. (None, None) where the pairs are too few to reject anything.
    """
    d = np.asarray(differences, dtype=float)
    # Where m is below the mean of d, flipping a subset of d - m leaves the sum as large exactly
    # if the subset's mean is at most m. So the p-value of m counts such subsets (the empty one
    # is the observed pattern), and the ends looked for are two of their means.
    if len(d) > ENUMERATED:
        flipped = _random_signs(len(d)) < 0
        # Either side: a pattern's sum is as large as the observed one where the mean of what it
        # flips is at most m, or that of what it leaves.
        means = [part @ d / part.sum(axis=1) for part in (flipped, ~flipped)]
        lowest, highest = np.min(means, axis=0), np.max(means, axis=0)
        ends = 1
    else:
        # (2**k,): sums and sizes of all subsets of the first k, first of the empty one.
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in d:
            sums = np.concatenate([sums, sums + value])
            sizes = np.concatenate([sizes, sizes + 1])
        lowest = highest = sums[1:] / sizes[1:]
        ends = 2
    # k means part the line into k + 1 intervals, each as likely to hold the true mean
    # (Hartigan): `rank` of them go at either end. A random pattern has a mean for each end, of the
    # enumerated subsets the means are for both. 1e-9: in floats 1 - 0.9 is below 0.1.
    rank = int((1 - level) * (len(lowest) + 1) / ends + 1e-9)
    if not rank:
        return None, None
    return float(np.sort(lowest)[rank - 1]), float(np.sort(highest)[-rank])


def prediction_interval(comparison):
    """95 % interval of one more pair: (low, high), mean -+ t s sqrt(1 + 1/n), of normal pairs.

    A single number of somebody else's belongs beside this, not beside the interval of the mean.
    """
    n, mean, deviation = comparison.n, comparison.mean, comparison.deviation
    if deviation is None:
        return None, None
    # The variances add: s**2 of the new pair, s**2 / n of the mean that it is predicted from.
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * deviation * math.sqrt(1 + 1 / n)
    return mean - half, mean + half


def pairs_to_reach(comparisons=1):
    """The fewest pairs with which one of `comparisons` p-values can survive Holm's correction."""
    # 2 / 2**n is the smallest p-value: of the observed pattern and its negative alone. Holm's
    # factor for the smallest p-value is the number of comparisons.
    return next(n for n in itertools.count(MINIMUM_PAIRS) if 2 / 2**n * comparisons <= ALPHA)
