"""The claims: what they quote is among the paper's numbers, and verdicts follow from the runs."""

import random
import re

import pytest
from invented_runs import DIVERGED, RESULTS, ROOT, changed
from omegaconf import OmegaConf

from lcm.reporting.claims import (
    claims_page,
    families,
    judge,
    judge_statements,
    read_claims,
    statement_tables,
)
from lcm.reporting.protocol import Protocol, read_csv, select
from lcm.reporting.runs import frame
from lcm.reporting.statistics import pairs_to_reach
from lcm.reporting.tables import read_complexity, read_paper

PAPER = read_paper(RESULTS)
TOP1 = PAPER[PAPER["metric"] == "top1"]
PRINTED = {(p.table, p.model, p.data, p.attention): p.value for p in TOP1.itertuples()}
COMPLEXITY = read_complexity(RESULTS)  # tests/paper/test_complexity.py counts it anew


@pytest.fixture
def claims():
    return read_claims(RESULTS / "claims.yaml", PAPER)


def simulated(seeds, effects, tables=(1, 2, 3, 4, 5)):
    """Runs of the paper's rows; `effects`: {attention: the true gain over none}, each run's
    deviation 0.1 points.
    """
    noise, rows = random.Random(0), []
    facts = {"state": "finished", "precision": "fp32", "test_top5": 99.0, "deviations": "{}"}
    names = ["data", "model", "attention"]
    for row in PAPER[PAPER["table"].isin(tables)].drop_duplicates(names)[names].to_dict("records"):
        row["schedule"] = "mini_imagenet" if row["data"] == "mini_imagenet" else "cifar"
        for seed in range(seeds):
            top1 = round(90 + effects.get(row["attention"], 0) + noise.gauss(0, 0.1), 2)
            run = {"seed": seed, "run": f"{'/'.join(row.values())}/{seed}", "test_top1": top1}
            rows.append(facts | row | run)
    return frame(rows)


NO_RUNS = simulated(0, {})


def judged_by(claims, runs):
    return judge_statements(claims, select(runs, Protocol()))


def judged_claims(claims, runs, complexity=COMPLEXITY):
    """{id: the judged claim}"""
    return {c["id"]: c for c in judge(claims, judged_by(claims, runs), complexity)}


def test_every_difference_is_the_papers(claims):
    statements = {statement for claim in claims for statement in claim["statements"]}
    assert len(statements) == 73
    for c in statements:
        a, b = (PRINTED[c.table, c.model, c.data, arm] for arm in (c.a, c.b))
        assert c.paper == pytest.approx(a - b, abs=1e-9), c
    # every number has two decimals, as printed
    assert all(len(line["value"].split(".")[1]) == 2 for line in read_csv(RESULTS / "paper.csv"))


def test_one_pair_has_one_corrected_p(claims):
    """DenseNet-100 with LCM2 and none stands in Tables 1 and 3 (CIFAR-10), 1 and 4 (CIFAR-100)."""
    judged = judged_by(claims, simulated(12, {"lcm2": 0.3}))
    found = {}
    for s, part in judged.items():
        pair = s.data, s.model, frozenset((s.a, s.b)), s.least, s.most
        found.setdefault(pair, []).append(part)
    several = [parts for parts in found.values() if len(parts) > 1]
    assert len(several) == 3  # and CBAM against LCM2, which two claims of Table 5 say both ways
    assert all(len({(part.adjusted, part.needed) for part in parts}) == 1 for parts in several)
    one = next(parts[0] for key, parts in found.items() if key[:2] == ("cifar10", "densenet100"))
    families = [sum(s.table == table for s in judged) for table in (1, 3)]
    assert one.adjusted >= max(families) * one.comparison.p * 0.999 or one.adjusted == 1
    assert one.needed == max(7, *(judged[s].needed for s in judged if s.table == 1))


@pytest.mark.parametrize(
    "seeds, effects, tables, expected",
    [
        # a real gain is supported and a real loss contradicts
        (
            11,
            {"lcm2": 1.0, "lcm1": 0.6},
            (1, 2, 3, 4, 5),
            {
                "supported": "densenet-better resnet-better lcm2-higher superiority overall-better "
                "better-everywhere",
                "contradicted": "below-cbam",
            },
        ),
        (
            11,
            {"lcm2": -1.0, "lcm1": -0.6},
            (1, 2, 3, 4, 5),
            {"contradicted": "densenet-better overall-better", "supported": "below-cbam"},
        ),
        # slight and similar have two sides
        (
            11,
            {"lcm2": 2.0},
            (1, 2),
            {"contradicted": "densenet-lcm2-not-below-lcm1 resnet20-almost-similar"},
        ),
        (
            11,
            {"lcm2": -1.0},
            (1, 2),
            {"contradicted": "densenet-lcm2-not-below-lcm1 resnet20-almost-similar"},
        ),
    ],
)
def test_what_is_true_of_the_runs_is_the_verdict(claims, seeds, effects, tables, expected):
    found = judged_claims(claims, simulated(seeds, effects, tables))
    for word, ids in expected.items():
        assert {found[id]["verdict"] for id in ids.split()} == {word}


def test_every_claim_says_how_it_is_judged(claims):
    keys = "id place quote judged_as note holds_if cost limits within comparisons comparisons_of"
    found = {"statements", "against_it", "contradicts_itself"}
    assert set().union(*claims) == {*keys.split(), *found}
    page = claims_page(claims, NO_RUNS, Protocol(), COMPLEXITY, {})
    for claim in claims:
        assert f"“{claim['quote'].strip()}”" in page
        assert claim["judged_as"] and f" | {claim['judged_as']} | {claim['place']} |" in page
    judged_as = " ".join(claim["judged_as"] for claim in claims)
    assert all(word in judged_as for word in ("greatly", "by how much is not judged", "top-1"))
    top5 = {(p.model, p.attention): p.value for p in PAPER[PAPER["metric"] == "top5"].itertuples()}
    above = {m for m, a in top5 if a == "cbam" and top5[m, "cbam"] > top5[m, "lcm2"]}
    numbers = {f"({top5[m, 'cbam']:.2f} against {top5[m, 'lcm2']:.2f})" for m in above}
    assert above == {"resnet50", "resnext50"} and all(n in claims[0]["note"] for n in numbers)


def test_what_has_to_be_there_is_there(claims):
    every = [claim for claim in claims if claim["holds_if"] == "every"]
    made = [(c.table, c.a, c.b) for claim in every for c in set(claim["statements"])]
    rivals = ("se", "cbam", "nonlocal", "gc")
    expected = [
        *((table, arm, "none") for table in (1, 2, 3, 4, 5) for arm in ("lcm1", "lcm2")),
        *((table, "lcm2", "lcm1") for table in (1, 2)),
        *((table, "lcm2", rival) for table in (3, 4, 5) for rival in rivals),
    ]
    for table, a, b in expected:  # on every network and data set of the table that has both arms
        places = [key[:3] for key in PRINTED if key[0] == table and (*key[:3], b) in PRINTED]
        both = {place for place in places if (*place, a) in PRINTED}
        assert made.count((table, a, b)) >= len(both), (table, a, b)
    assert made.count((5, "cbam", "lcm2")) == 1
    assert len({claim["id"] for claim in claims}) == len(claims)


def test_the_papers_own_numbers_contradict_these(claims):
    results = judged_claims(claims, NO_RUNS).values()
    against = {c["id"]: c["paper"] for c in results if c["paper"].startswith("CONTRADICT")}
    assert against == {
        "superiority": "CONTRADICT it (Table 5, ResNet-50, mini-ImageNet: lcm2 against cbam -0.39)",
        "lcm2-higher": "CONTRADICT it (Table 1, DenseNet-64, CIFAR-10: lcm2 against lcm1 0.00; "
        "Table 2, ResNet-20, CIFAR-10: lcm2 against lcm1 -0.07)",
    }


@pytest.mark.parametrize("seeds", [0, 5])
def test_without_seeds_enough_nothing_is_decided(seeds, claims):
    runs = simulated(seeds, {"lcm2": 3.0})
    found = {(row.verdict, row.comparison.n) for row in judged_by(claims, runs).values()}
    assert found == {("not tested yet", seeds)}
    results = judged_claims(claims, runs).values()
    assert {claim["holds_if"]: claim["verdict"] for claim in results} == {
        "every": "not tested yet", "on_average": "not tested yet", "cost": "supported",
        "not_judged": "not judged",
    }  # fmt: skip


def test_diverged_runs_count_against_a_claim(claims):
    """ResNet-20 with LCM2 is five points better, but 3 of 13 seeds diverge on CIFAR-10."""
    runs = simulated(13, {"lcm2": 5.0}, tables=(2,))
    lost = runs["run"].str.match("cifar10/resnet20/lcm2/cifar/[012]$")
    failed = {"state": "failed", "message": DIVERGED, "test_top1": None}
    runs = changed(runs, lost, **failed)
    arms = "cifar10", "resnet20", "lcm2", "none"
    one = next(row for s, row in judged_by(claims, runs).items() if s[:4] == arms)
    found = (one.comparison.n, one.comparison.wins, one.verdict)
    assert found == (13, pytest.approx(10 / 13), "inconclusive")
    averages = [c for c in claims if c["holds_if"] == "on_average"]
    assert {c["verdict"] for c in judged_claims(averages, runs).values()} == {"not tested yet"}


def test_holm_is_over_one_table_with_the_comparisons_to_come(claims):
    judged = judged_by(claims, simulated(10, {"lcm2": 1.0}, tables=(2,)))
    family = [j for c, j in judged.items() if c.table == 2]
    smallest = min(j.comparison.p for j in family)
    assert len(family) == 13 and min(j.adjusted for j in family) == pytest.approx(13 * smallest)
    assert all(j.adjusted is None for c, j in judged.items() if c.table == 1)


def recommended(experiment):
    """(the fewest seeds with which a test can be significant, the seeds that are recommended), as
    an experiment's file says."""
    text = (ROOT / f"configs/experiment/{experiment}.yaml").read_text()
    found = re.search(r"fewer than (\w+) seeds\D*be significant\D*seed='range\((\d+)\)'", text)
    return {"nine": 9, "ten": 10}[found[1]], int(found[2])


def test_the_seeds_that_are_recommended_can_decide(claims):
    """A family of k comparisons needs 2 k / 2**n <= 0.05: fewer seeds than that would be trained
    for nothing.
    """
    for table, family in families(claims).items():
        fewest, seeds = recommended(f"table{table}")
        assert 2 * len(family) / 2**fewest <= 0.05 < 2 * len(family) / 2 ** (fewest - 1), table
        assert seeds >= fewest
    command = rf"experiment=table2 seed='range\({seeds}\)' +# 120 long runs; also table1"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(command, readme)
    own = re.search(r"attention=(\S+) seed='range\((\d+)\)' schedule.epochs", readme)
    assert int(own[2]) == pairs_to_reach(own[1].count(","))
    sweep = OmegaConf.load(ROOT / "configs/experiment/quickstart.yaml")["hydra"]["sweeper"]
    fewest = pairs_to_reach(sweep["params"]["attention"].count(","))
    assert recommended("quickstart") == (fewest, fewest)


@pytest.mark.parametrize(
    "model, key, factor, claim, verdict, words",
    [
        ("resnet50", "params", 1, "slight-cost", "supported", "+5.31 % parameters"),
        ("resnet50", "params", 1, "same-cost", "supported", ""),
        ("resnet50", "macs", 1.02, "slight-cost", "contradicted", "multiply-accumulates"),
        ("resnet20", "params", 0.9, "same-cost", "contradicted", "-10.00 %"),
        ("resnet20", "params", 0.9, "slight-cost", "supported", "+5.31 % parameters"),
    ],
)
def test_cost_is_judged_from_exact_counts(claims, model, key, factor, claim, verdict, words):
    """LCM2 adds 24,971,380 / 23,712,932 = 5.31 % to the parameters of ResNet-50."""
    changed = COMPLEXITY.copy()
    lcm2 = (changed["model"] == model) & (changed["attention"] == "lcm2")
    changed.loc[lcm2, key] = (changed.loc[lcm2, key] * factor).astype(float).round().astype(int)
    result = judged_claims(claims, NO_RUNS, changed)[claim]
    assert result["verdict"] == verdict and words in result["ours"]


def test_page(claims):
    runs = simulated(3, {"lcm1": 0.5, "lcm2": 0.5}, tables=(2,))
    made = [Protocol(), COMPLEXITY, {"superiority": "20 / 25"}]
    page = claims_page(claims, runs.assign(commit=runs["attention"]), *made)
    assert page == claims_page(claims, runs.assign(commit=runs["attention"])[::-1], *made)
    for words in (
        "Its own numbers contradict 2 of them (numbers 1 and 2).",
        "| 20 / 25 |",
        "39 pairs; differences other than the attention: 39 in the commit (lcm1 - none, "
        "lcm2 - none, lcm2 - lcm1).",
    ):
        assert page.count(words) == 1
    assert statement_tables(claims, judged_by(claims, runs))[1].filled == 13
