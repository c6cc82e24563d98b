"""Pairs and families of comparisons: what is planned decides, and failures are losses."""

import re
import statistics

import pytest
from invented_runs import DIVERGED, ROOT, changed, more, results_of

from lcm.reporting.protocol import Protocol
from lcm.reporting.render import fill_blocks, markdown, signed
from lcm.reporting.report import make_report
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import comparison_table

TENTH = {"data": "cifar100", "schedule": "tenth", "epochs": 30, "compile": True}
NOISE = [0.1, -0.1, 0.2, -0.2, 0.15, -0.15, 0.05, -0.05, 0.1, 0.2]


def compared(runs):
    """(lcm2 against none, the whole comparison as text) of runs of the paper's schedule."""
    table = comparison_table(runs, Protocol(), ROOT / "results")
    return table.records[table.records["attention"] == "lcm2"].iloc[0], markdown(table)


def of_records(folder, runs, *protocol):
    """{(attention, against): record} of the comparison of some invented runs; the table; the folder
    of results."""
    results = results_of(folder, runs)
    table = comparison_table(read_runs(results / "runs.csv"), Protocol(*protocol), results)
    found = {(row["attention"], row["against"]): row for row in table.records.to_dict("records")}
    return found, table, results


def of_arms(seeds, gains, **facts):
    """The keywords of invented runs of none and others; `gains` over none, with a little noise."""
    runs = [("none", s, 65 + s / 4) for s in range(seeds)]
    for index, (attention, gain) in enumerate(gains.items()):
        runs += [(attention, s, 65 + s / 4 + gain + NOISE[(s + index) % 10]) for s in range(seeds)]
    return [dict(zip(("attention", "seed", "top1"), run, strict=True)) | facts for run in runs]


def test_the_family_is_what_the_paper_claims_not_what_was_trained(tmp_path):
    """Six seeds of one arm, each better: not bold, and the same corrected p on every page."""
    found, table, results = of_records(tmp_path, of_arms(6, {"lcm2": 1, "se": 1}))
    lcm2, se = found["lcm2", "none"], found["se", "none"]
    assert (lcm2["p"], lcm2["p_holm"], lcm2["verdict"]) == (2 / 64, 13 * 2 / 64, "inconclusive")
    assert "0.031 | 0.406 | inconclusive (6 of 10 pairs) |" in markdown(table)
    assert (se["p_holm"], se["verdict"]) == (None, None)
    page, _ = make_report(results)
    assert page.count("<td>0.031</td><td>0.406</td>") == 2  # among the claims, and in the table


def test_a_planned_schedule_has_the_plans_families(tmp_path):
    runs = of_arms(8, {"se": 0.0, "lcm1": 1.0, "lcm2": 0.8, "eca": 3.0}, **TENTH)
    runs[-9]["device"] = "another"  # the last run of lcm2
    found, table, results = of_records(tmp_path, runs, "tenth")
    p = 2 / 256
    assert {pair: (row["p_holm"], row["verdict"]) for pair, row in found.items()} == {
        ("none", None): (None, None),
        ("se", "none"): (found["se", "none"]["p"], "inconclusive"),
        ("lcm1", "none"): (3 * p, "supported"),
        ("lcm2", "none"): (3 * p, "supported"),
        ("lcm2", "se"): (2 * p, "supported"),  # a family of two
        ("lcm2", "lcm1"): (found["lcm2", "lcm1"]["p"], "inconclusive"),
        ("eca", "none"): (None, None),  # nobody planned it
    }
    assert list(found)[-1] == ("eca", "none")
    text = markdown(table)
    assert "results/plans/tenth.yaml" in text
    assert "not excluded, all 5 of a data set at once (each at 99 %)" in text
    printed = [found[pair]["paper"] for pair in (("lcm1", "none"), ("lcm2", "lcm1"))]
    assert printed == pytest.approx([69.40 - 68.34, 69.53 - 69.40])
    lcm1 = found["lcm1", "none"]
    d = lcm1["differences"]
    spread = 2.3646 * statistics.stdev(d) * (1 + 1 / 8) ** 0.5  # t of 7 degrees of freedom
    assert lcm1["next_low"] == pytest.approx(statistics.fmean(d) - spread, abs=1e-3)
    assert (lcm1["loss_at_once"], lcm1["gain_at_once"]) == pytest.approx((min(d), max(d)))
    page, pictures = make_report(results)
    assert "comparison-tenth" in page and "judged when" not in page + text
    low, high, mean = map(signed, (lcm1["low"], lcm1["high"], statistics.fmean(d)))
    for words in (
        f"on CIFAR-100, ResNet-20, schedule=tenth: lcm1 minus none is {mean} points (95 % interval "
        f"{low} to {high}, 8 pairs). That lcm1 is better: supported (p = 0.023, corrected). The "
        f"runs exclude that the difference is below {signed(min(d))} or above {signed(max(d))} "
        "points (a stricter test, of all planned comparisons on this data set together at the 5 % "
        "level). The paper's difference under its own schedule: +1.06; one more pair here is "
        f"expected between {signed(lcm1['next_low'])} and {signed(lcm1['next_high'])} (95 %, ",
        "schedule=tenth: se minus none is",
    ):
        assert words in page
    planned = re.findall("Planned before the first run</b>.*", page)
    assert ["The paper's difference" in line for line in planned] == [
        False,
        True,
        True,
        False,
        True,
    ]
    assert "What the runs exclude" not in page
    differ = "48 pairs; differences other than the attention: 3 in the device or its threads ("
    assert page.count(f"<li>Under schedule=tenth: {differ}") == 1
    block = "<!-- results:begin comparison-tenth -->\n<!-- results:end -->"
    assert differ in fill_blocks(block, [table])
    forest = pictures["against-none-tenth-cifar100"].decode()
    assert "ResNet-20: lcm2 - se" in forest and "the paper" in forest


@pytest.mark.parametrize("seeds, lost, words", [(8, 1, "7 to 8"), (7, 0, "7"), (1, 1, "0 to 1")])
def test_a_plan_is_judged_when_all_its_seeds_are_there(seeds, lost, words, tmp_path):
    """The last runs of LCM2 and SE, `lost` of each, were not compiled, as the plan has it."""
    runs = of_arms(seeds, {"lcm1": 1.0, "lcm2": 1.0, "se": 1.0}, **TENTH)
    late = ("lcm2", "se")
    runs = [
        run | {"compile": run["attention"] not in late or run["seed"] < seeds - lost}
        for run in runs
    ]
    found, table, results = of_records(tmp_path, runs, "tenth")
    lcm1 = found["lcm1", "none"]
    assert lcm1["verdict"] == "not tested yet"
    assert {lcm1[key] for key in ("p", "p_holm", "loss", "gain", "gain_at_once")} == {None}
    text = markdown(table)
    progress = f"CIFAR-100: {words} of 8 pairs; judged when all 8 are there."
    block = "<!-- results:begin comparison-tenth -->\n<!-- results:end -->"
    page, pictures = make_report(results)
    late = f"not tested yet ({seeds - lost or seeds} of 8 pairs)" in text
    assert late and "supported |" not in text and progress in text
    assert progress in fill_blocks(block, [table])
    assert f"In progress, as planned.</b> {NOT}{progress}" in page
    assert "What the runs exclude" not in page and "Planned before" not in page
    assert "interval: not tested yet" in pictures["against-none-tenth-cifar100"].decode()
    # what is still to be run is run as planned
    command = "python train.py data=cifar100 model=resnet20 attention=se schedule=tenth"
    assert (f"{command} compile=true" in text) == (seeds == lost)


NOT = "Not the paper&#39;s schedule: runs with schedule=tenth, precision=fp32. "


def test_runs_that_were_not_planned_change_no_planned_row(tmp_path):
    planned = of_arms(8, {"lcm1": 1.0, "lcm2": 1.0}, **TENTH)
    found, *_ = of_records(tmp_path / "a", planned, "tenth")
    extra = [run | {"seed": run["seed"] + 8} for run in of_arms(2, {"lcm1": 30.0}, **TENTH)]
    short = {"epochs": 3, "start": "2026-01-01", "compile": True}  # its file was another that day
    extra += of_arms(8, {"lcm1": 30.0}, **TENTH | short)
    other, *_ = of_records(tmp_path / "b", planned + extra, "tenth")
    assert str(found) == str(other)
    others = of_arms(8, {"lcm1": 1.0}, **TENTH | {"model": "resnet32", "compile": False})
    more, *_ = of_records(tmp_path / "c", others, "tenth")
    assert more["lcm1", "none"]["verdict"] is None


def test_a_diverged_run_is_the_worst_of_its_arm(tmp_path):
    runs = of_arms(8, {"se": 0.0, "lcm1": 1.0, "lcm2": 1.0}, **TENTH)
    lost = next(run for run in runs if (run["attention"], run["seed"]) == ("lcm1", 3))
    lost |= {"state": "failed", "message": DIVERGED}
    found, table, _ = of_records(tmp_path, runs, "tenth")
    row = found["lcm1", "none"]
    worst = min(r["top1"] for r in runs if r["attention"] == "lcm1" and r is not lost)
    assert row["differences"][3] == pytest.approx(worst - 65.75, abs=0.006)
    facts = {"pairs": 8, "n": 7, "diverged": 1, "wins": 7 / 8, "verdict": "inconclusive"}
    # what the test of lost pairs does not reject would contradict its p-value
    facts |= dict.fromkeys(["loss", "gain", "loss_at_once", "gain_at_once"])
    assert row | facts == row and "(7 of 8)" in markdown(table)


def test_a_network_of_ones_own_has_no_rows_for_sizes_it_does_not_have(tmp_path):
    runs = of_arms(8, {"se": 1, "mine": 1}, model="net", schedule="short")
    found, table, _ = of_records(tmp_path, runs, "short")
    assert [a for a, _ in found] == ["none", "se", "mine"] and not table.missing
    se = found["se", "none"]  # a family of two, not of seven
    assert (se["p_holm"], se["verdict"]) == (2 * 2 / 2**8, "supported")


def test_the_command_for_images_of_ones_own_is_one_that_train_takes(tmp_path):
    runs = of_arms(2, {"se": 1}, data="pets", schedule="short")
    _, table, _ = of_records(tmp_path, runs, "short")
    names = "data=folder data.label=pets data.root=FOLDER model=resnet20 attention=cbam"
    assert table.missing[0] == f"python train.py {names} schedule=short"


def test_pairs_need_the_same_seed_and_the_same_pixels(runs):
    found, text = compared(runs)
    assert found["differences"] == pytest.approx((0.40, -0.05, 0.66))
    assert "different pixels" not in text and "other than the attention" not in text
    one = (runs["attention"] == "none") & (runs["seed"] == 1)
    found, text = compared(changed(runs, one, data_fingerprint="other"))
    assert found["differences"] == pytest.approx((0.40, 0.66))
    assert "**The runs on cifar10 saw different pixels**" in text


def test_of_two_alike_pairs_the_plain_one_counts(runs):
    fits = (
        (runs["data"] == "cifar10") & (runs["schedule"] == "cifar") & (runs["precision"] == "fp32")
    )
    none, lcm2 = ((fits & (runs["attention"] == arm)).to_numpy() for arm in ("none", "lcm2"))
    early = {"compile": True, "start": "2020-01-01T00:00:00+00:00"}
    both = more(runs, none, **early, test_top1=50.0)
    both = more(both, [*lcm2, *[False] * none.sum()], **early, test_top1=60.0)
    assert compared(both)[0]["differences"] == pytest.approx((0.40, -0.05, 0.66))


def test_what_the_runs_of_a_pair_differ_in_is_said(runs):
    lcm2 = runs["attention"] == "lcm2"
    first, second = (lcm2 & (runs["seed"] == seed) for seed in (0, 1))
    other = changed(changed(runs, first | second, torch="3.0"), first, commit="a", device="another")
    other = changed(changed(other, second, compile=True), second, rounding="deterministic=True")
    # both runs of a pair were continued, on the same device, but not from the same epoch
    other = changed(other, runs["seed"] == 2, device="A, then B")
    words = (
        "1 in the commit (lcm2); 2 in the version of torch (lcm2); 2 in the device "
        "or its threads (lcm2); 1 in the use of `compile=true` (lcm2); 1 in the settings "
        "that change rounding alone (lcm2)."
    )
    text = compared(other)[1]
    assert f"5 pairs; differences other than the attention: {words}" in text


def test_of_several_runs_of_a_seed_the_alike_ones_are_a_pair(runs):
    """Every lcm2 run is compiled; none has a plain run and a compiled one of each seed."""
    lcm2 = (runs["attention"] == "lcm2").to_numpy()
    none = (runs["attention"] == "none") & (runs["schedule"] == "cifar")
    none = (none & (runs["data"] == "cifar10")).to_numpy()
    mixed = changed(runs, lcm2, compile=True)
    assert "in the use of `compile=true` (lcm2)" in compared(mixed)[1]
    found, text = compared(more(mixed, none, compile=True, test_top1=90.0))
    assert "in the use of" not in text
    assert found["differences"] == pytest.approx((2.5, 2.35, 2.71), abs=1e-9)
    other = more(mixed, none, commit="another", torch="3.0", compile=False, test_top1=80.0)
    again = more(other, [*none, *([False] * none.sum())], compile=True, torch="3.0", test_top1=70.0)
    assert compared(again)[0]["differences"] == pytest.approx((22.5, 22.35, 22.71), abs=1e-9)
