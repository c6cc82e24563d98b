"""The claims: what they quote of the paper's numbers is there, and the verdicts follow from the
runs.
"""

import csv
import random
import re

import pytest
import yaml
from invented_runs import ROOT
from omegaconf import OmegaConf

from lcm.errors import UserError
from lcm.reporting.claims import (
    claims_page,
    judge,
    judge_statements,
    read_claims,
    statement_tables,
)
from lcm.reporting.protocol import Protocol, select
from lcm.reporting.records import COLUMNS
from lcm.reporting.runs import frame
from lcm.reporting.tables import read_complexity, read_paper

RESULTS = ROOT / "results"
PAPER = read_paper(RESULTS)
TOP1 = PAPER[PAPER["metric"] == "top1"]
PRINTED = {(p.table, p.model, p.data, p.attention): p.value for p in TOP1.itertuples()}
COMPLEXITY = read_complexity(RESULTS)  # tests/paper/test_complexity.py counts it anew


@pytest.fixture
def claims():
    return read_claims(RESULTS / "claims.yaml", PAPER)


def simulated(seeds, effect, tables=(1, 2, 3, 4, 5)):
    """Runs of the paper's rows; `effect(attention)` is the true gain over none, each run's
    deviation 0.1 points.
    """
    noise, rows = random.Random(0), []
    facts = dict.fromkeys(COLUMNS) | {"state": "finished", "precision": "fp32", "test_top5": 99.0}
    facts |= {"deviations": "{}", "data_fingerprint": "f"}
    names = ["data", "model", "attention"]
    for row in PAPER[PAPER["table"].isin(tables)].drop_duplicates(names)[names].to_dict("records"):
        row["schedule"] = "mini_imagenet" if row["data"] == "mini_imagenet" else "cifar"
        for seed in range(seeds):
            run = {"seed": seed, "run": f"{'/'.join(row.values())}/{seed}"}
            top1 = round(90 + effect(row["attention"]) + noise.gauss(0, 0.1), 2)
            rows.append(facts | row | run | {"test_top1": top1})
    return frame(rows)


NO_RUNS = simulated(0, None)


def judged_by(claims, runs):
    return judge_statements(claims, select(runs, Protocol()))


def verdicts(claims, runs, complexity=COMPLEXITY):
    """{id: the judged claim}, {id: its verdict}"""
    results = judge(claims, judged_by(claims, runs), complexity)
    return {c["id"]: c for c in results}, {c["id"]: c["verdict"] for c in results}


def test_every_difference_is_the_papers(claims):
    statements = {statement for claim in claims for statement in claim["statements"]}
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
        assert len({(part.adjusted, part.needed) for part in parts}) == 1
    one = next(parts[0] for key, parts in found.items() if key[:2] == ("cifar10", "densenet100"))
    families = [sum(s.table == table for s in judged) for table in (1, 3)]
    assert one.adjusted >= max(families) * one.comparison.p * 0.999 or one.adjusted == 1
    assert one.needed == max(7, *(judged[s].needed for s in judged if s.table == 1))


def test_slight_and_similar_have_two_sides(claims):
    for gain in (2.0, -1.0):
        runs = simulated(11, lambda a, gain=gain: gain * (a == "lcm2"), tables=(1, 2))
        _, words = verdicts(claims, runs)
        for id in ("densenet-lcm2-not-below-lcm1", "resnet20-almost-similar"):
            assert words[id] == "contradicted", (id, gain)
    costly = COMPLEXITY.copy()
    cheap = (costly["model"] == "resnet20") & (costly["attention"] == "lcm2")
    costly.loc[cheap, "params"] = costly.loc[cheap, "params"] * 9 // 10
    results, words = verdicts(claims, NO_RUNS, costly)
    assert words["same-cost"] == "contradicted" and "-10.00 %" in results["same-cost"]["ours"]
    assert words["slight-cost"] == "supported"


def test_almost_the_same_is_supported_by_equal_arms(claims):
    equal = simulated(40, lambda a: 0.02 * (a == "lcm2"), tables=(1, 2))
    judged = judged_by(claims, equal)
    margins = [j.verdict for c, j in judged.items() if not c.is_gain]
    strict = [j.verdict for c, j in judged.items() if c.is_gain and c.table < 3]
    assert margins.count("supported") > len(margins) / 2
    assert strict.count("supported") < len(strict) / 4


def test_every_claim_says_how_it_is_judged(claims):
    page = claims_page(claims, NO_RUNS, Protocol(), COMPLEXITY, {})
    for claim in claims:
        quote = f"“{claim['quote'].strip()}”"
        line = next(line for line in page.splitlines() if quote in line)
        assert claim["judged_as"] and f"| {claim['judged_as']} | {claim['place']} |" in line
    for word in ("greatly", "by how much is not judged", "top-1"):
        assert any(word in claim["judged_as"] for claim in claims)
    superiority = claims[0]
    top5 = {(p.model, p.attention): p.value for p in PAPER[PAPER["metric"] == "top5"].itertuples()}
    above = {m for m, a in top5 if a == "cbam" and top5[m, "cbam"] > top5[m, "lcm2"]}
    assert above == {"resnet50", "resnext50"}
    for model in above:
        numbers = f"({top5[model, 'cbam']:.2f} against {top5[model, 'lcm2']:.2f})"
        assert numbers in superiority["note"]


def test_what_has_to_be_there_is_there(claims):
    every = [claim for claim in claims if claim["holds_if"] == "every"]
    made = [(c.table, c.a, c.b) for claim in every for c in set(claim["statements"])]
    expected = [
        (table, arm, "none") for table in (1, 2, 3, 4, 5) for arm in ("lcm1", "lcm2")
    ] + [(table, "lcm2", "lcm1") for table in (1, 2)]  # fmt: skip
    expected += [
        (t, "lcm2", rival) for t in (3, 4, 5) for rival in ("se", "cbam", "nonlocal", "gc")
    ]
    for table, a, b in expected:  # on every network and data set of the table that has both arms
        places = [key[:3] for key in PRINTED if key[0] == table and (*key[:3], b) in PRINTED]
        both = {place for place in places if (*place, a) in PRINTED}
        assert made.count((table, a, b)) >= len(both), (table, a, b)
    assert made.count((5, "cbam", "lcm2")) == 1
    assert len({claim["id"] for claim in claims}) == len(claims)


def test_the_papers_own_numbers_contradict_these(claims):
    results, _ = verdicts(claims, NO_RUNS)
    against = {id for id, claim in results.items() if claim["paper"].startswith("CONTRADICT")}
    assert against == {"superiority", "lcm2-higher"}
    assert "ResNet-50, mini-ImageNet: lcm2 against cbam -0.39" in results["superiority"]["paper"]
    assert "DenseNet-64, CIFAR-10: lcm2 against lcm1 0.00" in results["lcm2-higher"]["paper"]
    assert "ResNet-20, CIFAR-10: lcm2 against lcm1 -0.07" in results["lcm2-higher"]["paper"]


@pytest.mark.parametrize("seeds", [0, 5])
def test_without_seeds_enough_nothing_is_decided(seeds, claims):
    runs = simulated(seeds, lambda a: {"lcm2": 3.0}.get(a, 0.0))
    judged = judged_by(claims, runs)
    found = {(row.verdict, row.comparison.n) for row in judged.values()}
    assert found == {("not tested yet", seeds)}
    results, words = verdicts(claims, runs)
    kinds = {claim["holds_if"]: words[id] for id, claim in results.items()}
    assert kinds == {
        "every": "not tested yet", "on_average": "not tested yet", "cost": "supported",
        "not_judged": "not judged",
    }  # fmt: skip


def test_a_real_gain_is_supported_and_a_real_loss_contradicts(claims):
    gain = ["densenet-better", "resnet-better", "lcm2-higher", "superiority", "overall-better"]
    _, words = verdicts(claims, simulated(11, lambda a: {"lcm2": 1.0, "lcm1": 0.6}.get(a, 0.0)))
    assert {words[id] for id in (*gain, "better-everywhere")} == {"supported"}
    assert words["below-cbam"] == "contradicted"
    _, words = verdicts(claims, simulated(11, lambda a: {"lcm2": -1.0, "lcm1": -0.6}.get(a, 0.0)))
    assert words["densenet-better"] == words["overall-better"] == "contradicted"
    assert words["below-cbam"] == "supported"


def test_diverged_runs_count_against_a_claim(claims):
    """ResNet-20 with LCM2 is five points better, but 3 of 13 seeds diverge on CIFAR-10."""
    runs = simulated(13, lambda a: 5.0 * (a == "lcm2"), tables=(2,))
    lost = (runs["model"] == "resnet20") & (runs["data"] == "cifar10") & (runs["seed"] < 3)
    lost &= runs["attention"] == "lcm2"
    runs.loc[lost, ["state", "message"]] = "failed", "the loss is not finite in epoch 2"
    runs.loc[lost, "test_top1"] = None
    judged = judged_by(claims, runs)
    arms = "cifar10", "resnet20", "lcm2", "none"
    one = next(row for s, row in judged.items() if (s.data, s.model, s.a, s.b) == arms)
    assert (one.comparison.n, one.comparison.diverged) == (13, 3) and one.verdict == "inconclusive"
    assert one.comparison.wins == pytest.approx(10 / 13)
    averages = [c for c in claims if c["holds_if"] == "on_average"]
    assert averages and {verdicts(averages, runs)[1][c["id"]] for c in averages} == {
        "not tested yet"
    }


def test_holm_is_over_one_table_with_the_comparisons_to_come(claims):
    runs = simulated(10, lambda a: 1.0 * (a == "lcm2"), tables=(2,))
    judged = judged_by(claims, runs)
    family = [j for c, j in judged.items() if c.table == 2]
    smallest = min(j.comparison.p for j in family)
    assert len(family) == 13 and min(j.adjusted for j in family) == pytest.approx(13 * smallest)
    assert all(j.adjusted is None for c, j in judged.items() if c.table == 1)
    few = runs[(runs["attention"] != "lcm1") & (runs["model"] == "resnet20") & (runs["seed"] < 6)]
    few = few[few["data"] == "cifar10"]
    (one,) = [j for j in judged_by(claims, few).values() if j.comparison.n]
    assert (one.comparison.p, one.adjusted) == (2 / 64, 13 * 2 / 64)
    assert one.verdict == "inconclusive" and one.needed > 6  # as the page says of such a table


def test_the_seeds_that_are_recommended_can_decide(claims):
    """A family of k comparisons needs 2 k / 2**n <= 0.05: fewer seeds than that would be trained
    for nothing.
    """
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
    results, words = verdicts(claims, NO_RUNS)
    assert pytest.approx(5.31, abs=0.005) == (24_971_380 / 23_712_932 - 1) * 100  # ResNet-50
    assert words["slight-cost"] == words["same-cost"] == "supported"
    assert "+5.31 % parameters" in results["slight-cost"]["ours"]
    heavy = COMPLEXITY.copy()
    lcm2 = (heavy["model"] == "resnet50") & (heavy["attention"] == "lcm2")
    heavy.loc[lcm2, "macs"] = 4_200_000_000
    assert verdicts(claims, NO_RUNS, heavy)[1]["slight-cost"] == "contradicted"


def test_page(claims):
    runs = simulated(3, lambda a: 0.5 * (a != "none"), tables=(2,))
    chances = {"superiority": "20 / 25"}
    page = claims_page(claims, runs, Protocol(), COMPLEXITY, chances)
    assert page == claims_page(claims, runs[::-1], Protocol(), COMPLEXITY, chances)
    assert "Its own numbers contradict 2 of them (number 1 and 2)." in page
    assert page.count("| 20 / 25 |") == 1
    table = statement_tables(claims, judged_by(claims, runs))[1]
    assert len(table.rows) == table.filled == 13
    assert {len(row) for row in table.rows} == {len(table.header)}
    page = claims_page(claims, runs.assign(commit=runs["attention"]), Protocol(), COMPLEXITY, {})
    words = "39 pairs; some differ in more than the attention: 39 in the commit (lcm1, lcm2)."
    assert words in page


def test_every_claim_is_of_a_kind_that_is_judged(tmp_path):
    entries = yaml.safe_load((RESULTS / "claims.yaml").read_text())
    assert {entry["holds_if"] for entry in entries} == {"every", "on_average", "cost", "not_judged"}
    keys = {"id", "place", "quote", "judged_as", "note", "holds_if", "cost", "limits"}
    assert set().union(*entries) == keys | {"within", "comparisons", "comparisons_of"}
    with pytest.raises(UserError, match="missing"):
        read_claims(tmp_path / "claims.yaml", PAPER)


def test_paper_csv_is_whole():
    """57 rows of five tables; every number has two decimals, as printed."""
    assert len(PAPER.drop_duplicates(["table", "label"])) == 57
    with open(RESULTS / "paper.csv", newline="") as stream:
        assert all(len(line["value"].split(".")[1]) == 2 for line in csv.DictReader(stream))
