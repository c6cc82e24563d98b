"""The claims: what they quote of the paper's numbers is there, and the verdicts follow from the runs."""

import csv
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lcm.errors import UserError
from lcm.reporting.claims import (
    Claim,
    claims_page,
    judge,
    judge_statements,
    read_claims,
    statement_tables,
)
from lcm.reporting.protocol import Protocol, select
from lcm.reporting.records import COLUMNS
from lcm.reporting.runs import frame
from lcm.reporting.statistics import pairs_to_reach
from lcm.reporting.tables import read_complexity, read_paper

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
PAPER = read_paper(RESULTS)
TOP1 = PAPER[PAPER["metric"] == "top1"]
PRINTED = {(p.table, p.model, p.data, p.attention): p.value for p in TOP1.itertuples()}
COMPLEXITY = read_complexity(RESULTS)  # a test of test_results.py counts it anew
NOT_COUNTED = COMPLEXITY[:0]


@pytest.fixture(scope="module")
def claims():
    return read_claims(RESULTS / "claims.yaml", PAPER)


def simulated(seeds, effect, tables=(1, 2, 3, 4, 5)):
    """Runs of the paper's rows; `effect(attention)` is the true gain over none, each run's deviation 0.1 points."""
    noise, rows = random.Random(0), []
    paper = PAPER[PAPER["table"].isin(tables)].drop_duplicates(
        ["data", "model", "attention"], keep="first"
    )
    for line in paper.itertuples():
        for seed in range(seeds):
            names = {
                "data": line.data,
                "model": line.model,
                "attention": line.attention,
                "seed": seed,
            }
            facts = names | {"state": "finished", "precision": "fp32"}
            facts |= {"schedule": "mini_imagenet" if line.data == "mini_imagenet" else "cifar"}
            facts |= {
                "run": "/".join(map(str, facts.values())),
                "deviations": "{}",
                "data_fingerprint": "f",
            }
            facts["test_top1"] = round(90 + effect(line.attention) + noise.gauss(0, 0.1), 2)
            rows.append(dict.fromkeys(COLUMNS) | facts | {"test_top5": 99.0})
    return frame(rows)


NO_RUNS = simulated(0, None)


def judged_by(claims, runs):
    return judge_statements(claims, select(runs, Protocol()))


def verdicts(claims, runs, complexity=COMPLEXITY):
    """{id: JudgedClaim}"""
    results = judge(claims, judged_by(claims, runs), complexity)
    return {result.claim.id: result for result in results}


def test_every_difference_is_the_papers(claims):
    statements = {statement for claim in claims for statement in claim.statements}
    assert len(statements) == 73
    for c in statements:
        a, b = (PRINTED[c.table, c.model, c.data, arm] for arm in (c.a, c.b))
        assert c.paper == pytest.approx(a - b, abs=1e-9), c


def test_one_pair_has_one_corrected_p(claims):
    """DenseNet-100 with LCM2 and none stands in Tables 1 and 3 (CIFAR-10), 1 and 4 (CIFAR-100)."""
    judged = judged_by(claims, simulated(12, lambda a: 0.3 * (a == "lcm2")))
    found = {}
    for s, part in judged.items():
        pair = frozenset((s.a, s.b))
        found.setdefault((s.data, s.model, pair, s.least, s.most), []).append(part)
    several = [parts for parts in found.values() if len(parts) > 1]
    assert len(several) == 3  # and CBAM against LCM2, which two claims of Table 5 say both ways
    for parts in several:
        assert len({part.adjusted_p for part in parts}) == len({p.needed for p in parts}) == 1
    one = next(parts[0] for key, parts in found.items() if key[:2] == ("cifar10", "densenet100"))
    assert one.adjusted_p >= one.comparison.p


def test_slight_and_similar_have_two_sides(claims):
    for gain, words in ((2.0, {"contradicted"}), (-1.0, {"contradicted"})):
        runs = simulated(11, lambda a, gain=gain: gain * (a == "lcm2"), tables=(1, 2))
        results = verdicts(claims, runs)
        for id in ("densenet-lcm2-not-below-lcm1", "resnet20-almost-similar"):
            assert {results[id].verdict} == words, (id, gain)
    costly = COMPLEXITY.copy()
    cheap = (costly["model"] == "resnet20") & (costly["attention"] == "lcm2")
    costly.loc[cheap, "params"] = costly.loc[cheap, "params"] * 9 // 10
    results = verdicts(claims, NO_RUNS, costly)
    assert (
        results["same-cost"].verdict == "contradicted" and "-10.00 %" in results["same-cost"].ours
    )
    assert results["slight-cost"].verdict == "supported"


def test_every_claim_says_how_it_is_judged(claims):
    page = claims_page(claims, NO_RUNS, Protocol(), COMPLEXITY)
    for claim in claims:
        line = next(line for line in page.splitlines() if f"“{claim.quote.strip()}”" in line)
        assert claim.judged_as and f"| {claim.judged_as} |" in line
    for word in ("greatly", "by how much is not judged", "top-1"):
        assert any(word in claim.judged_as for claim in claims)
    (superiority,) = [claim for claim in claims if claim.id == "superiority"]
    top5 = {(p.model, p.attention): p.value for p in PAPER[PAPER["metric"] == "top5"].itertuples()}
    above = {m for m, a in top5 if a == "cbam" and top5[m, "cbam"] > top5[m, "lcm2"]}
    assert above == {"resnet50", "resnext50"}
    for model in above:
        numbers = f"({top5[model, 'cbam']:.2f} against {top5[model, 'lcm2']:.2f})"
        assert numbers in superiority.note
    assert "3.2.4" in next(claim.place for claim in claims if claim.id == "slight-cost")


def test_diverged_runs_count_against_a_claim(claims):
    """ResNet-20 with LCM2 is five points better, but 3 of 13 seeds diverge on CIFAR-10."""
    runs = simulated(13, lambda a: 5.0 * (a == "lcm2"), tables=(2,))
    assert verdicts(claims, runs)["lcm2-more-effective"].verdict == "not tested yet"
    lost = (runs["model"] == "resnet20") & (runs["data"] == "cifar10") & (runs["seed"] < 3)
    lost &= runs["attention"] == "lcm2"
    failed = runs.copy()
    failed.loc[lost, ["state", "message"]] = "failed", "the loss is not finite in epoch 2"
    failed.loc[lost, "test_top1"] = None
    judged = {s: j for s, j in judged_by(claims, failed).items() if s.table == 2}
    arms = "cifar10", "resnet20", "lcm2", "none"
    one = next(j for s, j in judged.items() if (s.data, s.model, s.a, s.b) == arms)
    assert (one.comparison.n, one.comparison.diverged) == (13, 3) and one.verdict == "inconclusive"
    assert one.comparison.wins == pytest.approx(10 / 13)


def test_what_has_to_be_there_is_there(claims):
    made = Counter(
        (c.table, c.a, c.b)
        for claim in claims
        for c in set(claim.statements)
        if claim.holds_if == "every"
    )
    for table, arms in (
        (1, ("lcm1", "lcm2")),
        (2, ("lcm1", "lcm2")),
        (3, ("lcm2",)),
        (4, ("lcm2",)),
        (5, ("lcm2",)),
    ):
        for arm in arms:  # each against its baseline, on every network and data set
            assert made[table, arm, "none"] >= sum(
                t == table and a == arm for t, _, _, a in PRINTED
            )
    for table in (1, 2):
        assert made[table, "lcm2", "lcm1"] >= sum(
            t == table and a == "lcm2" for t, _, _, a in PRINTED
        )
    for table in (3, 4, 5):
        for rival in ("se", "cbam", "nonlocal", "gc"):
            assert made[table, "lcm2", rival] >= sum(
                t == table and a == rival for t, _, _, a in PRINTED
            )
    assert made[5, "cbam", "lcm2"] == 1
    assert len({claim.id for claim in claims}) == len(claims) and all(
        claim.place and claim.quote for claim in claims
    )


def test_the_papers_own_numbers_contradict_these(claims):
    results = verdicts(claims, NO_RUNS)
    against = {id for id, r in results.items() if r.paper.startswith("CONTRADICT")}
    assert against == {"superiority", "lcm2-higher"}
    assert "ResNet-50, mini-ImageNet: lcm2 against cbam -0.39" in results["superiority"].paper
    assert "DenseNet-64, CIFAR-10: lcm2 against lcm1 0.00" in results["lcm2-higher"].paper
    assert "ResNet-20, CIFAR-10: lcm2 against lcm1 -0.07" in results["lcm2-higher"].paper


def test_without_runs_nothing_is_decided(claims):
    judged = judged_by(claims, NO_RUNS)
    assert {j.verdict for j in judged.values()} == {"not tested yet"}
    assert {r.verdict for r in verdicts(claims, NO_RUNS, NOT_COUNTED).values()} == {
        "not tested yet",
        "not judged",
    }
    assert "python scripts/complexity.py --csv" in claims_page(
        claims, NO_RUNS, Protocol(), NOT_COUNTED
    )


def test_five_seeds_decide_nothing(claims):
    judged = judged_by(claims, simulated(5, lambda a: {"lcm2": 3.0}.get(a, 0.0)))
    assert {j.verdict for j in judged.values()} == {"not tested yet"} and {
        j.comparison.n for j in judged.values()
    } == {5}


def test_a_real_gain_is_supported_and_a_real_loss_contradicts(claims):
    results = verdicts(claims, simulated(11, lambda a: {"lcm2": 1.0, "lcm1": 0.6}.get(a, 0.0)))
    for id in (
        "densenet-better",
        "resnet-better",
        "lcm2-higher",
        "superiority",
        "overall-better",
        "better-everywhere",
    ):
        assert results[id].verdict == "supported", id
    assert results["below-cbam"].verdict == "contradicted"
    results = verdicts(claims, simulated(11, lambda a: {"lcm2": -1.0, "lcm1": -0.6}.get(a, 0.0)))
    assert results["densenet-better"].verdict == results["overall-better"].verdict == "contradicted"
    assert results["below-cbam"].verdict == "supported"


def test_almost_the_same_is_supported_by_equal_arms(claims):
    equal = simulated(40, lambda a: 0.02 * (a == "lcm2"), tables=(1, 2))
    judged = judged_by(claims, equal)
    margins = [j for c, j in judged.items() if not c.is_gain]
    strict = [j for c, j in judged.items() if c.is_gain and c.table < 3]
    assert [j.verdict for j in margins].count("supported") > len(margins) / 2
    assert [j.verdict for j in strict].count("supported") < len(strict) / 4


def test_holm_is_over_one_table_with_the_comparisons_to_come(claims):
    runs = simulated(10, lambda a: 1.0 * (a == "lcm2"), tables=(2,))
    judged = judged_by(claims, runs)
    family = [j for c, j in judged.items() if c.table == 2]
    assert len(family) == 13
    smallest = min(j.comparison.p for j in family)
    assert min(j.adjusted_p for j in family) == pytest.approx(13 * smallest)
    assert all(j.adjusted_p is None for c, j in judged.items() if c.table == 1)
    others = runs["attention"] != "lcm1"
    few = runs[
        others & (runs["model"] == "resnet20") & (runs["data"] == "cifar10") & (runs["seed"] < 6)
    ]
    (one,) = [j for j in judged_by(claims, few).values() if j.comparison.n]
    assert (
        one.comparison.p == 2 / 64
        and one.adjusted_p == 13 * 2 / 64
        and one.verdict == "inconclusive"
    )
    assert pairs_to_reach(13) > 6  # as the page says of such a table


def test_the_seeds_that_are_recommended_can_decide(claims):
    """A family of k comparisons needs 2 k / 2**n <= 0.05: fewer seeds than that would be trained for nothing."""
    judged = judged_by(claims, NO_RUNS)
    for table in range(1, 6):
        family = [c for c in judged if c.table == table]
        text = (ROOT / f"configs/experiment/table{table}.yaml").read_text()
        seeds = int(re.search(r"can decide: seed='range\((\d+)\)'", text)[1])
        assert 2 * len(family) / 2**seeds <= 0.05, table
    command = rf"experiment=table2 seed='range\({seeds}\)' +# table1 ... table5"
    assert re.search(command, (ROOT / "README.md").read_text())
    text = (ROOT / "configs/experiment/quickstart.yaml").read_text()
    others = len(OmegaConf.create(text)["hydra"]["sweeper"]["params"]["attention"].split(",")) - 1
    fewest = int(re.search(r"can decide: seed='range\((\d+)\)'", text)[1])
    assert 2 * others / 2**fewest <= 0.05 < 2 * others / 2 ** (fewest - 1)


def test_cost_is_judged_from_exact_counts(claims):
    results = verdicts(claims, NO_RUNS)
    assert (
        pytest.approx(5.31, abs=0.005) == (24_971_380 / 23_712_932 - 1) * 100
    )  # ResNet-50 with LCM2 and without
    assert (
        results["slight-cost"].verdict == "supported"
        and "+5.31 % parameters" in results["slight-cost"].ours
    )
    assert results["same-cost"].verdict == "supported"
    heavy = COMPLEXITY.copy()
    heavy.loc[(heavy["model"] == "resnet50") & (heavy["attention"] == "lcm2"), "macs"] = (
        4_200_000_000
    )
    assert verdicts(claims, NO_RUNS, heavy)["slight-cost"].verdict == "contradicted"


def test_page(claims):
    runs = simulated(3, lambda a: 0.5 * (a != "none"), tables=(2,))
    page = claims_page(claims, runs, Protocol(), COMPLEXITY)
    assert page == claims_page(claims, runs[::-1], Protocol(), COMPLEXITY)
    assert "Its own numbers contradict 2 of them (number 1 and 2)." in page
    for claim in claims:
        assert claim.quote.strip() in page
    table = statement_tables(claims, judged_by(claims, runs))[1]
    assert len(table.rows) == table.filled == 13 and all(
        len(row) == len(table.header) for row in table.rows
    )
    assert all(
        line.count(" | ") == 12
        for line in page.splitlines()
        if line.startswith("| ResNet-20 | CIFAR")
    )
    page = claims_page(claims, runs.assign(commit=runs["attention"]), Protocol(), COMPLEXITY)
    assert (
        "39 pairs; some differ in more than the attention: 39 in the commit (lcm1, lcm2)." in page
    )


def test_every_claim_is_of_a_kind_that_is_judged(claims, tmp_path):
    entries = yaml.safe_load((RESULTS / "claims.yaml").read_text())
    assert {entry["holds_if"] for entry in entries} == {"every", "on_average", "cost", "not_judged"}
    assert set().union(*entries) - {"within", "comparisons", "comparisons_of"} <= set(Claim._fields)
    with pytest.raises(UserError, match="missing"):
        read_claims(tmp_path / "claims.yaml", PAPER)


def test_paper_csv_is_whole():
    """57 rows of five tables; every number has two decimals, as printed."""
    assert len(PAPER.drop_duplicates(["table", "label"])) == 57
    with open(RESULTS / "paper.csv", newline="") as stream:
        assert all(len(line["value"].split(".")[1]) == 2 for line in csv.DictReader(stream))
