"""The statistics against scipy, against brute force, and against simulated runs whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from lcm.reporting import statistics
from lcm.reporting.power import coverage, power_page, simulate, simulated_differences
from lcm.reporting.statistics import (
    CONTRADICTED,
    INCONCLUSIVE,
    SUPPORTED,
    UNTESTABLE,
    Comparison,
    bca_interval,
    compare,
    every,
    holm,
    pairs_to_reach,
    seeds_needed,
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
    if len(np.unique(np.abs(d))) == len(
        d
    ):  # scipy takes equal sums for different where their last digits differ
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


def test_sign_flip_p_of_six_equal_signs_is_the_smallest_there_is():
    assert (
        sign_flip_p([0.1] * 6) == 2 / 64
        and sign_flip_p([-0.1] * 5) == 2 / 32
        and sign_flip_p([0.0] * 6) == 1
    )


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


def test_interval_and_mean_move_with_the_data():
    d = np.random.default_rng(3).normal(0.4, 0.2, 8)
    low, high = bca_interval(d)
    assert bca_interval(d + 1) == pytest.approx((low + 1, high + 1), abs=1e-9)
    assert bca_interval(-d) == pytest.approx((-high, -low), abs=1e-9)
    assert bca_interval(d) == (low, high)  # the same each time


def test_holm_is_the_closed_test():
    """Holm's adjusted p of a hypothesis: the largest Bonferroni p of any set of hypotheses that holds it."""
    for seed in range(20):
        p = np.random.default_rng(seed).beta(0.3, 2, 5)
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        closed = [max(min(1, len(s) * min(p[list(s)])) for s in sets if i in s) for i in range(5)]
        assert holm(list(p)) == pytest.approx(closed, abs=1e-12)
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.01, None, 0.04]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.08),
    ]  # a comparison to come counts


def test_compare():
    c = compare([0.5, 0.3, 0.0, 0.4, -0.1, 0.6])
    assert (c.n, c.wins) == (6, 4.5 / 6) and c.mean == pytest.approx(1.7 / 6)
    assert c.deviation == pytest.approx(np.std([0.5, 0.3, 0.0, 0.4, -0.1, 0.6], ddof=1))
    assert c.low < c.mean < c.high
    shifted = compare([0.5, 0.3, 0.0, 0.4, -0.1, 0.6], null=-0.1)
    assert (shifted.mean, shifted.low) == (c.mean, c.low)
    assert shifted.p == sign_flip_p([0.6, 0.4, 0.1, 0.5, 0.0, 0.7])


def test_compare_where_little_is_defined():
    assert compare([]) == Comparison(0)
    one = compare([0.3])
    assert (one.mean, one.deviation, one.low, one.p, one.wins) == (0.3, None, None, 1.0, 1.0)
    two = compare([0.3, 0.5])
    assert two.low is None and two.deviation is not None
    equal = compare([0.1] * 6)  # all equal: the interval is the value itself
    assert (equal.low, equal.high, equal.p) == (pytest.approx(0.1), pytest.approx(0.1), 2 / 64)
    assert verdict(equal, equal.p) == SUPPORTED
    zero = compare([0.0] * 8)
    assert (zero.low, zero.high, zero.p, zero.wins) == (0, 0, 1, 0.5) and verdict(
        zero, zero.p
    ) == INCONCLUSIVE
    with pytest.raises(ValueError, match="finite"):
        compare([0.1, math.nan])


@pytest.mark.parametrize(
    "n, low, high, p, word",
    [
        (5, 0.4, 0.6, 0.0625, UNTESTABLE),
        (6, 0.1, 0.6, 0.03125, SUPPORTED),
        (6, 0.1, 0.6, 0.0625, INCONCLUSIVE),
        (8, -0.1, 0.6, 0.04, INCONCLUSIVE),
        (8, 0.0, 0.6, 0.04, INCONCLUSIVE),
        (8, -0.6, 0.0, 0.04, INCONCLUSIVE),
        (8, 0.1, 0.6, 0.05, SUPPORTED),
        (8, -0.6, -0.1, 0.04, CONTRADICTED),
        (0, None, None, None, UNTESTABLE),
    ],
)
def test_verdict(n, low, high, p, word):
    assert verdict(Comparison(n, low=low, high=high), p) == word


def test_verdict_of_not_worse_by_a_margin():
    d = [-0.05, 0.02, 0.0, -0.03, 0.04, -0.02]
    at_zero, at_margin = compare(d), compare(d, null=-0.1)
    assert (
        verdict(at_zero, at_zero.p) == INCONCLUSIVE
        and verdict(at_margin, at_margin.p, -0.1) == SUPPORTED
    )


def part(word, p=1 / 64):
    """A comparison that has the verdict `word` with the p-value `p`."""
    low, high = {SUPPORTED: (0.1, 0.2), CONTRADICTED: (-0.2, -0.1)}.get(word, (-0.1, 0.1))
    return Comparison(0 if word == UNTESTABLE else 7, low=low, high=high, p=p), p, 0.0


@pytest.mark.parametrize(
    "words, word",
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, INCONCLUSIVE], INCONCLUSIVE),
        ([SUPPORTED, UNTESTABLE, INCONCLUSIVE], UNTESTABLE),
        ([], UNTESTABLE),
        ([SUPPORTED, UNTESTABLE, CONTRADICTED], CONTRADICTED),
        ([CONTRADICTED] + [INCONCLUSIVE] * 3, INCONCLUSIVE),  # one of four at p = 1/64 is 1/16
    ],
)
def test_every(words, word):
    assert every(map(part, words)) == word


def test_a_claim_of_many_parts_is_not_contradicted_by_chance():
    """28 parts without a true difference: at 5 % each, some part is contradicted in about half of the families."""
    generator, contradicted = np.random.default_rng(5), 0
    for _ in range(20):
        parts = [compare(generator.normal(0, 0.3, 12)) for _ in range(28)]
        contradicted += every([(c, c.p, 0.0) for c in parts]) == CONTRADICTED
    assert contradicted <= 2


def test_pairs_to_reach():
    assert [pairs_to_reach(k) for k in (1, 2, 6, 7, 12, 25)] == [6, 7, 8, 9, 9, 10]
    for k in range(1, 40):
        n = pairs_to_reach(k)
        assert 2 / 2**n * k <= 0.05 and (n == 6 or 2 / 2 ** (n - 1) * k > 0.05)


def power_by_integration(n, difference, deviation, level):
    """P(t > critical) of the paired t-test: a normal numerator, integrated over the chi-square of the variance."""
    critical, shift = stats.t.ppf(1 - level / 2, n - 1), difference / deviation * n**0.5
    density = stats.chi2(n - 1).pdf
    upper = stats.chi2.ppf(1 - 1e-12, n - 1)
    return integrate.quad(
        lambda v: stats.norm.sf(critical * (v / (n - 1)) ** 0.5 - shift) * density(v),
        0,
        upper,
        limit=200,
    )[0]


@pytest.mark.parametrize(
    "difference, deviation, comparisons",
    [(0.5, 0.5, 1), (0.2, 0.35, 1), (0.3, 0.3, 13), (-0.4, 0.4, 6)],
)
def test_seeds_needed_are_the_fewest_with_that_power(difference, deviation, comparisons):
    n, level = seeds_needed(difference, deviation, comparisons), 0.05 / comparisons
    powers = [power_by_integration(m, abs(difference), deviation, level) for m in (n - 1, n)]
    assert powers[0] < 0.8 <= powers[1] and n > pairs_to_reach(comparisons)


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0, 0.3) is None and seeds_needed(0.5, None) is None
    assert seeds_needed(0.5, 0.0) == 6 and seeds_needed(0.5, 0.0, comparisons=6) == 8
    assert seeds_needed(0.001, 0.5) is None


def test_false_support_stays_at_five_percent():
    for pairs in (3, 6, 10):
        comparisons, _ = simulate(0, pairs, repetitions=600)
        assert comparisons <= (0.05 if pairs >= 6 else 0)
    _, families = simulate(0, 10, comparisons=6, repetitions=150)
    assert families <= 0.05


def test_coverage_of_the_interval():
    assert 0.85 < coverage(10, repetitions=200) < 0.97
    assert coverage(6, repetitions=200) > 0.8


def test_simulated_runs_have_the_deviation_they_claim():
    d = simulated_differences(0.5, 20_000, np.random.default_rng(0))
    assert d.mean() == pytest.approx(0.5, abs=0.01) and d.std() == pytest.approx(
        0.25 * 2**0.5, abs=0.01
    )


@pytest.mark.slow
def test_power_page_is_what_the_command_makes(request):
    file = request.config.rootpath / "results" / "power.md"
    assert file.read_text() == power_page()
