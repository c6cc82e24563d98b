"""The claims: what they quote of the paper's numbers is there, and the verdicts follow from the runs."""

import csv
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from lcm.config.options import load
from lcm.errors import UserError
from lcm.reporting.claims import WORDS, claims_page, contest_table, cost_rows, judge, judge_contests, read_claims
from lcm.reporting.collect import FIELDS, Run
from lcm.reporting.selection import Protocol
from lcm.reporting.tables import read_paper

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
PAPER = read_paper(RESULTS)
PRINTED = {(p["table"], p["model"], p["data"], p["metric"], p["attention"]): p["value"] for p in PAPER}
COMPLEXITY = {  # Table 2 and the two networks with the largest and smallest additions, exact counts
    (2, "resnet20", "none"): (269722, 0.041306, 40551424),
    (2, "resnet20", "lcm1"): (277972, 0.041314, 40559674),
    (2, "resnet20", "lcm2"): (277972, 0.041314, 40559674),
    (5, "resnet50", "none"): (23712932, 4.132104, 4089184256),
    (5, "resnet50", "lcm2"): (24971380, 4.133363, 4090442704),
}


@pytest.fixture(scope="module")
def claims():
    return read_claims(RESULTS / "claims.yaml")


def run(data, model, attention, seed, top1):
    facts = dict.fromkeys(FIELDS) | {
        "run": f"{data}/{model}/{attention}/seed{seed}", "state": "finished", "data": data, "model": model,
        "attention": attention, "seed": seed, "precision": "fp32", "deviations": {}, "test_top1": top1, "test_top5": 99.0,
        "schedule": "mini_imagenet" if data == "mini_imagenet" else "cifar", "data_fingerprint": "f",
    }  # fmt: skip
    return Run(**facts)


def simulated(seeds, effect, tables=(1, 2, 3, 4, 5)):
    """Runs of the paper's rows; `effect(attention)` is the true gain over none, each run's deviation 0.1 points."""
    noise, rows = random.Random(0), {}
    for line in PAPER:
        if line["table"] in tables:
            rows[line["data"], line["model"], line["attention"]] = line
    return [
        run(*row, seed, round(90 + effect(row[2]) + noise.gauss(0, 0.1), 2)) for row in rows for seed in range(seeds)
    ]


def test_every_difference_is_the_papers(claims):
    contests = {contest for claim in claims for contest in claim.contests}
    assert len(contests) == 73
    for c in contests:
        a, b = (PRINTED[c.table, c.model, c.data, c.metric, arm] for arm in (c.a, c.b))
        assert c.paper == pytest.approx(a - b, abs=1e-9), c


def test_what_has_to_be_there_is_there(claims):
    made = Counter((c.table, c.a, c.b) for claim in claims for c in set(claim.contests) if claim.holds_if == "every")
    rows = {(p["table"], p["model"], p["data"], p["attention"]) for p in PAPER if p["metric"] == "top1"}
    for table, arms in ((1, ("lcm1", "lcm2")), (2, ("lcm1", "lcm2")), (3, ("lcm2",)), (4, ("lcm2",)), (5, ("lcm2",))):
        for arm in arms:  # each against its baseline, on every network and data set
            assert made[table, arm, "none"] >= sum(t == table and a == arm for t, _, _, a in rows)
    for table in (1, 2):
        assert made[table, "lcm2", "lcm1"] >= sum(t == table and a == "lcm2" for t, _, _, a in rows)
    for table in (3, 4, 5):
        for rival in ("se", "cbam", "nonlocal", "gc"):
            assert made[table, "lcm2", rival] >= sum(t == table and a == rival for t, _, _, a in rows)
    assert made[5, "cbam", "lcm2"] == 1
    assert len({claim.id for claim in claims}) == len(claims) and all(claim.place and claim.quote for claim in claims)


def test_the_papers_own_numbers_contradict_these(claims):
    judged = judge_contests(claims, [], Protocol())
    results = {r.claim.id: r for r in judge(claims, judged, [], Protocol(), {})}
    against = {id for id, r in results.items() if r.paper.startswith("CONTRADICT")}
    assert against == {"superiority", "lcm2-higher"}
    assert "ResNet-50, mini-ImageNet: lcm2 against cbam -0.39" in results["superiority"].paper
    assert "DenseNet-64, CIFAR-10: lcm2 against lcm1 0.00" in results["lcm2-higher"].paper
    assert "ResNet-20, CIFAR-10: lcm2 against lcm1 -0.07" in results["lcm2-higher"].paper


def test_without_runs_nothing_is_decided(claims):
    judged = judge_contests(claims, [], Protocol())
    assert {j.verdict for j in judged.values()} == {"untestable"}
    results = judge(claims, judged, [], Protocol(), {})
    assert {r.verdict for r in results} == {"untestable", None}
    assert "python scripts/complexity.py --csv" in claims_page(claims, [], Protocol(), {})


def test_five_seeds_decide_nothing(claims):
    judged = judge_contests(claims, simulated(5, lambda a: {"lcm2": 3.0}.get(a, 0.0)), Protocol())
    assert {j.verdict for j in judged.values()} == {"untestable"} and {j.comparison.n for j in judged.values()} == {5}


def test_a_real_gain_is_supported_and_a_real_loss_contradicts(claims):
    gain = simulated(10, lambda a: {"lcm2": 1.0, "lcm1": 0.6}.get(a, 0.0))
    results = {
        r.claim.id: r.verdict for r in judge(claims, judge_contests(claims, gain, Protocol()), gain, Protocol(), {})
    }
    for id in ("densenet-better", "resnet-better", "lcm2-higher", "superiority", "overall-better", "better-everywhere"):
        assert results[id] == "supported", id
    assert results["below-cbam"] == "contradicted"
    loss = simulated(10, lambda a: {"lcm2": -1.0, "lcm1": -0.6}.get(a, 0.0))
    results = {
        r.claim.id: r.verdict for r in judge(claims, judge_contests(claims, loss, Protocol()), loss, Protocol(), {})
    }
    assert results["densenet-better"] == results["overall-better"] == "contradicted"
    assert results["below-cbam"] == "supported"


def test_almost_the_same_is_supported_by_equal_arms(claims):
    equal = simulated(20, lambda a: 0.05 * (a == "lcm2"), tables=(1, 2))
    judged = judge_contests(claims, equal, Protocol())
    margins = [j for c, j in judged.items() if c.margin]
    strict = [j for c, j in judged.items() if not c.margin and c.table < 3]
    assert [j.verdict for j in margins].count("supported") > len(margins) / 2
    assert [j.verdict for j in strict].count("supported") < len(strict) / 4


def test_holm_is_over_one_table(claims):
    runs = simulated(10, lambda a: 1.0 * (a == "lcm2"), tables=(2,))
    judged = judge_contests(claims, runs, Protocol())
    family = [j for c, j in judged.items() if c.table == 2]
    assert len(family) == 13
    some = [r for r in runs if (r.model, r.data) == ("resnet20", "cifar10")]
    partly = [j for c, j in judge_contests(claims, some, Protocol()).items() if c.table == 2 and j.comparison.n]
    assert 0 < len(partly) < 13  # the family is the table, not what was run of it
    smallest = min(j.comparison.p for j in partly)
    assert min(j.adjusted_p for j in partly) == pytest.approx(13 * smallest)
    assert "intersection-union" in WORDS and "Holm's correction over all comparisons of its table" in WORDS
    smallest = min(j.comparison.p for j in family)
    assert min(j.adjusted_p for j in family) == pytest.approx(13 * smallest)
    assert all(j.adjusted_p is None for c, j in judged.items() if c.table == 1)


def test_the_seeds_that_are_recommended_can_decide(claims):
    """A family of k comparisons needs 2 k / 2**n <= 0.05: fewer seeds than that would be trained for nothing."""
    judged = judge_contests(claims, [], Protocol())
    for table in range(1, 6):
        family = [c for c in judged if c.table == table]
        yaml = (ROOT / f"configs/experiment/table{table}.yaml").read_text()
        seeds = int(re.search(r"can decide: seed='range\((\d+)\)'", yaml)[1])
        assert 2 * len(family) / 2**seeds <= 0.05, table
    assert re.search(
        rf"experiment=table2 seed='range\({seeds}\)' +# table1 ... table5", (ROOT / "README.md").read_text()
    )
    yaml = (ROOT / "configs/experiment/quickstart.yaml").read_text()
    others = len(load("experiment", "quickstart")["hydra"]["sweeper"]["params"]["attention"].split(",")) - 1
    fewest = int(re.search(r"can decide: seed='range\((\d+)\)'", yaml)[1])
    assert 2 * others / 2**fewest <= 0.05 < 2 * others / 2 ** (fewest - 1)


def test_seeds_needed_for_the_papers_difference(claims):
    runs = simulated(3, lambda a: 0.0, tables=(2,))
    judged = judge_contests(claims, runs, Protocol())
    for c, j in judged.items():
        if c.table != 2:
            assert j.seeds_needed is None
    big = next(j for c, j in judged.items() if (c.model, c.data, c.a, c.b) == ("resnet20", "cifar100", "lcm2", "none"))
    small = next(j for c, j in judged.items() if c.paper == -0.07 and not c.margin)
    assert big.seeds_needed == 10 and small.seeds_needed > 20


def test_cost_is_judged_from_exact_counts(claims):
    cost = next(claim for claim in claims if claim.id == "slight-cost")
    rows = {(r.model, r.a): r for r in cost_rows(cost, COMPLEXITY)}
    assert rows["resnet50", "lcm2"].added_params == 24971380 - 23712932
    assert rows["resnet20", "lcm1"].params == pytest.approx(100 * 8250 / 269722)
    words = {r.claim.id: r for r in judge(claims, judge_contests(claims, [], Protocol()), [], Protocol(), COMPLEXITY)}
    assert words["slight-cost"].verdict == "supported" and "+5.31 % parameters" in words["slight-cost"].ours
    assert words["same-cost"].verdict == "supported"
    heavy = COMPLEXITY | {(5, "resnet50", "lcm2"): (33_000_000, 4.2, 4_200_000_000)}
    words = {r.claim.id: r for r in judge(claims, judge_contests(claims, [], Protocol()), [], Protocol(), heavy)}
    assert words["slight-cost"].verdict == "contradicted"


def test_page(claims):
    runs = simulated(3, lambda a: 0.5 * (a != "none"), tables=(2,))
    page = claims_page(claims, runs, Protocol(), COMPLEXITY)
    assert page == claims_page(claims, list(reversed(runs)), Protocol(), COMPLEXITY)
    assert "Its own numbers contradict 2 of them (number 1 and 2)." in page
    for claim in claims:
        assert claim.quote.strip() in page
    table = contest_table(2, claims, judge_contests(claims, runs, Protocol()))
    assert len(table.rows) == 13 and all(len(row) == len(table.header) for row in table.rows)
    assert all(line.count(" | ") == 13 for line in page.splitlines() if line.startswith("| ResNet-20 | CIFAR"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("- {id: x, place: p, quote: q, holds_if: evry}", "holds_if is one of"),
        ("- {id: x, place: p, quote: q, holds_if: every, comparison: []}", "nearest: comparisons"),
        ("- {id: x, place: p, quote: q, holds_if: every, comparisons: [{table: 1}]}", "malformed"),
        ("- {id: x, place: p, quote: q, holds_if: every, comparisons_of: [y]}", "malformed"),
        ("- {id: x, place: p, quote: q, holds_if: cost}\n- {id: x, place: p, quote: q, holds_if: cost}", "two claims"),
        ("- {id: [", "not YAML"),
        ("7", "malformed"),
    ],
)
def test_malformed_claims_are_refused(text, words, tmp_path):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_claims(tmp_path / "claims.yaml")
    with pytest.raises(UserError, match="missing"):
        read_claims(tmp_path / "nowhere.yaml")


def test_paper_csv_is_whole():
    """57 rows of five tables; every number has two decimals, as printed."""
    assert len({(p["table"], p["label"]) for p in PAPER}) == 57
    with open(RESULTS / "paper.csv", newline="") as stream:
        assert all(len(line["value"].split(".")[1]) == 2 for line in csv.DictReader(stream))
