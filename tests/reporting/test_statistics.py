"""The statistics against scipy, brute force, and simulated runs whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lcm.reporting import statistics
from lcm.reporting.statistics import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    SUPPORTED,
    Comparison,
    bca_interval,
    compare,
    every,
    holm,
    not_excluded,
    pairs_to_reach,
    prediction_interval,
    sign_flip_p,
    verdict,
)

rng = np.random.default_rng(0)
# with ties and without
SAMPLES = [rng.normal(0.2, 0.3, n).round(digits) for n in range(2, 11) for digits in (1, 2, 15)]


@pytest.mark.parametrize("d", SAMPLES, ids=lambda d: f"{len(d)} pairs")
def test_sign_flip_p_is_scipys_and_brute_force(d):
    exact = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    scaled = [round(float(x) * 10**15) for x in d]  # whole numbers: no rounding in the sums
    flips = [np.dot(signs, scaled) for signs in itertools.product((1, -1), repeat=len(d))]
    far = 10**3  # what a float's last digit may be off
    brute = sum(abs(flip) >= abs(sum(scaled)) - far for flip in flips) / len(flips)
    assert sign_flip_p(d) == pytest.approx(brute, abs=1e-12)
    # scipy takes equal sums for different where their last digits differ.
    if len(np.unique(np.abs(d))) == len(d):
        assert sign_flip_p(d) == pytest.approx(exact, abs=1e-12)


def test_up_to_twenty_pairs_every_pattern_is_counted_and_above_a_sample(monkeypatch):
    d = np.random.default_rng(1).normal(0.06, 0.3, 21)
    assert sign_flip_p(d[:20]) * 2**20 % 1 == 0 and sign_flip_p(d[:20]) * 10_000 % 1 != 0
    sampled = sign_flip_p(d)
    assert round(sampled * 10_000) / 10_000 == sampled
    monkeypatch.setattr(statistics, "ENUMERATED", 21)
    assert 0.02 < sampled < 0.5 and sampled == pytest.approx(sign_flip_p(d), abs=0.015)


@pytest.mark.parametrize("pairs", [8, 30])
def test_sums_that_differ_by_rounding_are_equal_and_others_are_not(pairs):
    whole = np.random.default_rng(2).integers(-1, 4, pairs)
    assert sign_flip_p(whole / 10) == sign_flip_p(whole * 0.3) == sign_flip_p(whole)
    apart = whole.astype(float)
    apart[np.flatnonzero(apart == 0)] = 1e-7  # a true difference, however small, is no tie
    assert sign_flip_p(apart) != sign_flip_p(whole)


def ideal_bca(d, level=0.95):
    """Efron 1987, eqs. (2.3), (6.6), over all n**n resamples instead of a random draw."""
    means = np.sort(np.stack(np.meshgrid(*[d] * len(d))).mean(axis=0).ravel())
    below = (
        (np.sum(means < np.mean(d) - 1e-12) + np.sum(means <= np.mean(d) + 1e-12)) / 2 / len(means)
    )
    z0 = stats.norm.ppf(below)
    jackknife = np.array([np.mean(np.delete(d, i)) for i in range(len(d))])
    u = jackknife.mean() - jackknife
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(z0 + z / (1 - a * z)))


@pytest.mark.parametrize("n", [5, 6, 7])
def test_bca_interval_is_efrons(n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100_000)
    for seed in range(3):
        d = np.random.default_rng([n, seed]).gamma(1.5, 0.3, n)
        assert list(bca_interval(d)) == pytest.approx(list(ideal_bca(d)), abs=0.04 * d.std())


def test_holm_is_the_closed_test():
    """Holm's adjusted p of a hypothesis: the largest Bonferroni p of any set of hypotheses that
    holds it.
    """
    for seed in range(20):
        p = np.random.default_rng(seed).beta(0.3, 2, 5)
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        closed = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(5)]
        assert holm(list(p)) == pytest.approx(closed, abs=1e-12)
    assert holm([]).tolist() == [] and holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    # a comparison to come counts; many families at once
    expected = [[0.03, math.nan, 0.08], [0.5, 0.03, 0.03]]
    found = holm([[0.01, None, 0.04], [0.5, 0.01, 0.01]])
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_compare():
    d = [0.5, 0.3, 0.0, 0.4, -0.1, 0.6]
    c = compare(d)
    assert (c.n, c.wins, c.differences) == (6, 4.5 / 6, tuple(d))
    assert (c.mean, c.deviation) == pytest.approx((1.7 / 6, np.std(d, ddof=1)))
    assert c.low < c.mean < c.high
    shifted = compare(d, least=-0.1)
    assert (shifted.mean, shifted.low) == (c.mean, c.low)
    assert shifted.p == sign_flip_p([0.6, 0.4, 0.1, 0.5, 0.0, 0.7])
    with pytest.raises(ValueError, match="finite"):
        compare([0.1, math.nan])


@pytest.mark.parametrize(
    "d, expected, word",
    [
        ([], (None, None, None, None, None), NOT_TESTED),
        ([0.3], (0.3, None, None, 1.0, 1.0), NOT_TESTED),
        ([0.3, 0.5], (0.4, 0.1 * 2**0.5, None, 0.5, 1.0), NOT_TESTED),
        # all equal: the interval is the value itself
        ([0.1] * 6, (0.1, 0.0, 0.1, 2 / 64, 1.0), SUPPORTED),
        ([-0.1] * 6, (-0.1, 0.0, -0.1, 2 / 64, 0.0), CONTRADICTED),
        ([0.0] * 8, (0.0, 0.0, 0.0, 1.0, 0.5), INCONCLUSIVE),
        # equal to rounding, just so
        ([0.0] * 7 + [1e-9], (1e-9 / 8, 1e-9 / 8**0.5, 1e-9 / 8, 1.0, 4.5 / 8), INCONCLUSIVE),
    ],
)
def test_compare_where_little_is_defined(d, expected, word):
    c = compare(d)
    assert (c.mean, c.deviation, c.low, c.p, c.wins) == pytest.approx(expected)
    assert verdict(c, c.p) == word and c.high == c.low


@pytest.mark.parametrize(
    "n, low, high, p, word",
    [
        (5, 0.4, 0.6, 0.0625, NOT_TESTED),
        (6, 0.1, 0.6, 0.03125, SUPPORTED),
        (6, 0.1, 0.6, 0.0625, INCONCLUSIVE),
        (8, -0.1, 0.6, 0.04, INCONCLUSIVE),
        (8, 0.0, 0.6, 0.04, INCONCLUSIVE),
        (8, -0.6, 0.0, 0.04, INCONCLUSIVE),
        (8, 0.1, 0.6, 0.05, SUPPORTED),
        (8, -0.6, -0.1, 0.04, CONTRADICTED),
        (0, None, None, None, NOT_TESTED),
    ],
)
def test_verdict(n, low, high, p, word):
    assert verdict(Comparison(n, low=low, high=high), p) == word


NEAR = np.array([-0.05, 0.02, 0.0, -0.03, 0.04, -0.02, 0.01, 0.03])


def test_almost_the_same_is_two_one_sided_tests():
    """TOST by hand: each bound's one-sided sign-flip test at 2.5 %, over all 2**8 patterns."""
    patterns = np.array([*itertools.product((1, -1), repeat=len(NEAR))])
    one_sided = [np.mean(patterns @ d >= d.sum() - 1e-9) for d in (NEAR + 0.1, 0.1 - NEAR)]
    assert compare(NEAR, least=-0.1, most=0.1).p == pytest.approx(2 * max(one_sided))


@pytest.mark.parametrize(
    "shift, most, word",
    [
        (0, 0.1, SUPPORTED),
        (2, 0.1, CONTRADICTED),
        (-2, 0.1, CONTRADICTED),
        (0.08, 0.1, INCONCLUSIVE),
        (0, math.inf, INCONCLUSIVE),
    ],
)
def test_verdicts_on_almost_the_same(shift, most, word):
    moved = compare(NEAR + shift, least=-0.1 if most < math.inf else 0, most=most)
    assert verdict(moved, moved.p) == word


@pytest.mark.parametrize("n, level", [(6, 0.95), (8, 0.95), (8, 0.99), (11, 0.95), (11, 0.8)])
def test_what_is_not_excluded_is_the_test_inverted(n, level):
    """On a grid, the values that the two-sided sign-flip test does not reject."""
    for seed in range(3):
        d = np.random.default_rng([n, seed]).normal(0.3, 0.4, n).round(2)
        low, high = not_excluded(d, level)
        grid = np.arange(d.min() - 0.02, d.max() + 0.02, 0.001)
        kept = [m for m in grid if sign_flip_p(d - m) > 1 - level + 1e-12]
        assert (low, high) == pytest.approx((kept[0], kept[-1]), abs=0.0011)
        for outside in (low - 1e-6, high + 1e-6):
            assert sign_flip_p(d - outside) <= 1 - level < sign_flip_p(d - (low + high) / 2)


def test_what_is_not_excluded_at_the_ends():
    assert not_excluded([0.1] * 5) == (None, None) == not_excluded([0.1, 0.4] * 3, 0.99)
    assert not_excluded([0.5, 0.2, 0.3, 0.1, 0.6, 0.4]) == (0.1, 0.6)
    assert not_excluded(range(20), 1 - 2**-19) == (0, 19)  # of all 2**20 - 1 subsets
    d = np.random.default_rng(3).normal(0.2, 0.5, 24)
    low, high = not_excluded(d)
    half = stats.t.ppf(0.975, 23) * d.std(ddof=1) / 24**0.5
    assert (low, high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.03)
    for outside in (low - 1e-6, high + 1e-6):  # random patterns, and the same for both
        assert sign_flip_p(d - outside) <= 0.05
    for inside in (low + 1e-6, high - 1e-6):
        assert sign_flip_p(d - inside) > 0.05


def test_prediction_interval_holds_one_more_pair():
    """By its definition: of many samples of 6, the seventh lies inside in 95 %."""
    draws = np.random.default_rng(4).normal(0.3, 0.4, (2000, 7))
    found = [Comparison(6, np.mean(d), np.std(d, ddof=1)) for d in draws[:, :6]]
    low, high = np.transpose([prediction_interval(c) for c in found])
    assert 0.935 < np.mean((low < draws[:, 6]) & (draws[:, 6] < high)) < 0.965
    assert prediction_interval(compare([0.3])) == (None, None)


@pytest.mark.parametrize(
    "d, lost, wins, word",
    [
        ([5.0] * 7 + [4.9] + [5.1] * 2, None, 1.0, SUPPORTED),
        # eight of ten seeds are five points better, two diverged
        ([5.0] * 7 + [4.9] * 3, [0] * 8 + [-1] * 2, 0.8, INCONCLUSIVE),
        ([5.0] * 8, [0] * 7 + [1], 1.0, SUPPORTED),  # the other arm diverged: a win
        ([0.2] * 12, [0] * 2 + [-1] * 10, 1 / 6, INCONCLUSIVE),
    ],
)
def test_a_failure_is_a_loss(d, lost, wins, word):
    found = compare(d, lost=lost)
    assert (found.n, found.wins, verdict(found, found.p)) == (len(d), wins, word)


def test_the_p_value_holds_as_well_where_the_lost_pairs_are_as_bad_as_can_be():
    failed = compare([5.0] * 7 + [4.9] * 3, lost=[0] * 8 + [-1] * 2)
    assert failed.p == sign_flip_p([5.0] * 7 + [4.9] + [-5.0] * 2) > 0.05
    assert compare([0.2] * 12, lost=[0] * 2 + [-1] * 10).p == 1
    near, lost = [0.01, -0.01] * 10, [0] * 19 + [-1]
    assert compare(near, -0.1, 0.1).p < 0.001 and compare(near, -0.1, 0.1, lost).p == 1
    assert compare([0.2] * 8, lost=[0] * 8).p == compare([0.2] * 8).p


def part(word, p=1 / 64):
    """A comparison that has the verdict `word` with the p-value `p`."""
    low, high = {SUPPORTED: (0.1, 0.2), CONTRADICTED: (-0.2, -0.1)}.get(word, (-0.1, 0.1))
    return Comparison(0 if word == NOT_TESTED else 7, low=low, high=high, p=p), p


@pytest.mark.parametrize(
    "words, word",
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, INCONCLUSIVE], INCONCLUSIVE),
        ([SUPPORTED, NOT_TESTED, INCONCLUSIVE], NOT_TESTED),
        ([], NOT_TESTED),
        ([SUPPORTED, NOT_TESTED, CONTRADICTED], CONTRADICTED),
        ([CONTRADICTED] + [INCONCLUSIVE] * 3, INCONCLUSIVE),  # one of four at p = 1/64 is 1/16
    ],
)
def test_every(words, word):
    assert every(map(part, words)) == word


def test_pairs_to_reach():
    assert [pairs_to_reach(k) for k in (1, 2, 3, 6, 7, 12, 13, 25)] == [6, 7, 7, 8, 9, 9, 10, 10]
