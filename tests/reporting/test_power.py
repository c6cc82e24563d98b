"""The simulations of results/power.md against plain ones."""

import numpy as np
import pytest
from invented_runs import RESULTS

from lcm.reporting.claims import families, read_claims
from lcm.reporting.power import (
    chances,
    claim_shares,
    coverage,
    flip_p,
    power_page,
    simulate,
    simulated_differences,
)
from lcm.reporting.statistics import (
    CONTRADICTED,
    SUPPORTED,
    compare,
    every,
    holm,
    sign_flip_p,
)
from lcm.reporting.tables import read_paper, top1

PAPER = read_paper(RESULTS)
CLAIMS, ACCURACIES = read_claims(RESULTS / "claims.yaml", PAPER), top1(PAPER)


@pytest.mark.parametrize("pairs, error", [(6, 1e-12), (9, 1e-12), (12, 1e-12), (25, 0.03)])
def test_the_simulations_p_values_are_the_verdicts(pairs, error):
    d = np.random.default_rng(pairs).normal(0.1, 0.3, (4, 5, pairs)).round(2)
    expected = [[sign_flip_p(sample) for sample in row] for row in d]
    assert flip_p(d) == pytest.approx(np.array(expected), abs=error)


def test_wrong_verdicts_of_both_kinds_stay_at_five_percent():
    for pairs in (3, 6, 10):
        supported, contradicted, _ = simulate(0, pairs, repetitions=1000)
        assert supported + contradicted <= (0.06 if pairs >= 6 else 0)
        assert pairs < 6 or (supported > 0.003 and contradicted > 0.003)  # both are counted
    _, _, families = simulate(0, 10, comparisons=6, repetitions=300)
    assert families <= 0.07
    gain, loss = simulate(0.5, 10)[:2], simulate(-0.5, 10)[:2]
    assert gain[0] > 0.9 > 0.05 > gain[1] and loss[1] > 0.9 > 0.05 > loss[0]


def test_whole_claims_have_the_shares_of_a_plain_simulation():
    """By `compare`, `holm` and `every` alone, run by run, of the same draws."""
    seeds, repetitions = 12, 10
    rng = np.random.default_rng(seeds)
    drawn = {a: rng.normal(m, 0.25, (repetitions, seeds)).round(2) for a, m in ACCURACIES.items()}
    claims = [claim for claim in CLAIMS if claim["holds_if"] == "every"]
    words = {claim["id"]: [] for claim in claims}
    for r in range(repetitions):
        found, adjusted = {}, {}
        for family in families(CLAIMS).values():
            for s in family:
                a, b = (drawn[s.data, s.model, arm][r] for arm in (s.a, s.b))
                found[s] = compare(a - b, s.least, s.most)
            for s, p in zip(family, holm([found[s].p for s in family]), strict=True):
                adjusted[s.question] = max(p, adjusted.get(s.question, 0))
        for claim in claims:
            judged = [(found[s], adjusted[s.question]) for s in claim["statements"]]
            words[claim["id"]].append(every(judged))
    shares = claim_shares(CLAIMS, ACCURACIES, seeds, repetitions)
    for name, said in words.items():
        plain = [np.mean([word == kind for word in said]) for kind in (SUPPORTED, CONTRADICTED)]
        assert list(shares[name]) == plain, name


def test_whole_claims_have_chances_that_fit():
    # its comparison on DenseNet-100 is in Table 1 too, whose family needs 10 pairs
    assert claim_shares(CLAIMS, ACCURACIES, 9, 50)["cifar100-generalizes"][0] == 0
    big = {arm: mean + 3 * (arm[2] == "lcm2") for arm, mean in ACCURACIES.items()}
    shares = claim_shares(CLAIMS, big, 12, 50)
    assert shares["superiority"][0] > 0.9 and shares["below-cbam"][1] > 0.9
    equal = claim_shares(CLAIMS, dict.fromkeys(ACCURACIES, 90), 12, 200)
    assert max(map(max, equal.values())) <= 0.05


def test_a_claim_that_the_paper_contradicts_has_no_chance(monkeypatch):
    monkeypatch.setattr("lcm.reporting.power.SEEDS", (10, 20))
    rows = chances(CLAIMS, ACCURACIES, repetitions=60).set_index("claim")
    assert set(rows.loc["superiority"]) == set(rows.loc["lcm2-higher"]) == {"never"}
    assert list(rows.loc["better-everywhere"]) == ["20", "20"]
    assert list(rows.loc["resnet20-almost-similar"]) == ["over 20", "over 20"]


def test_coverage_of_the_interval():
    assert 0.85 < coverage(10, repetitions=200) < 0.97
    assert coverage(6, repetitions=200) > 0.8


def test_simulated_runs_have_the_deviation_they_claim():
    d = simulated_differences(0.5, (20_000,), np.random.default_rng(0))
    assert d.mean() == pytest.approx(0.5, abs=0.01) and d.std() == pytest.approx(
        0.25 * 2**0.5, abs=0.01
    )


@pytest.mark.slow
def test_power_page_is_what_the_command_makes():
    rows = chances(CLAIMS, ACCURACIES)
    assert (RESULTS / "power.csv").read_text() == rows.to_csv(index=False, lineterminator="\n")
    assert (RESULTS / "power.md").read_text() == power_page(CLAIMS, ACCURACIES, rows)
