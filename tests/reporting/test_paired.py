"""Pairs and families of comparisons: what is planned decides, and failures are losses."""

import statistics

import pytest
from invented_runs import ROOT, changed, more, results_of

from lcm.reporting.protocol import Protocol
from lcm.reporting.readme import readme_blocks
from lcm.reporting.render import markdown, signed
from lcm.reporting.report import make_report
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import comparison_table


def compared(runs):
    """(lcm2 against none, the whole comparison as text) of runs of the paper's schedule."""
    table = comparison_table(runs, Protocol(), ROOT / "results")
    return table.records[table.records["attention"] == "lcm2"].iloc[0], markdown(table)


def of_one_arm(attention, points, **facts):
    """The keywords of an invented run for each of `points`, the top-1 of seeds 0, 1, ..."""
    return [{"attention": attention, "seed": s, "top1": p} | facts for s, p in enumerate(points)]


def of_records(folder, runs, protocol):
    """{(attention, against): record} of the comparison of some invented runs; its text."""
    results = results_of(folder, runs)
    table = comparison_table(read_runs(results / "runs.csv"), protocol, results)
    rows = table.records.to_dict("records")
    return {(row["attention"], row["against"]): row for row in rows}, markdown(table), results


def test_the_family_is_what_the_paper_claims_not_what_was_trained(tmp_path):
    """Six seeds of one arm, each better: not bold, and the same corrected p on every page."""
    runs = of_one_arm("none", [92 + s / 8 for s in range(6)])
    runs += of_one_arm("lcm2", [93 + s / 8 for s in range(6)])
    runs += of_one_arm("se", [93 + s / 8 for s in range(6)])
    found, text, results = of_records(tmp_path, runs, Protocol())
    lcm2 = found["lcm2", "none"]
    assert (lcm2["p"], lcm2["p_holm"]) == (2 / 64, 13 * 2 / 64) and lcm2[
        "verdict"
    ] == "inconclusive"
    assert "0.031 | 0.406 | inconclusive (6 of 10 pairs) |" in text
    assert found["se", "none"]["verdict"] is None and found["se", "none"]["p_holm"] is None
    page, _ = make_report(results)
    assert page.count("<td>0.031</td><td>0.406</td>") == 2  # among the claims, and in the table


TENTH = {"data": "cifar100", "schedule": "tenth", "epochs": 30, "compile": True}


def tenth(seeds, gains, **facts):
    """Runs of the plan: `gains` over none by attention, with a little noise."""
    noise = [0.1, -0.1, 0.2, -0.2, 0.15, -0.15, 0.05, -0.05, 0.1, 0.2]
    runs = of_one_arm("none", [65 + s / 4 for s in range(seeds)], **TENTH | facts)
    for index, (attention, gain) in enumerate(gains.items()):
        points = [65 + s / 4 + gain + noise[(s + index) % 10] for s in range(seeds)]
        runs += of_one_arm(attention, points, **TENTH | facts)
    return runs


def test_a_planned_schedule_has_the_plans_families(tmp_path):
    runs = tenth(8, {"se": 0.0, "lcm1": 1.0, "lcm2": 0.8, "eca": 3.0})
    found, text, results = of_records(tmp_path, runs, Protocol("tenth"))
    assert list(found) == [
        ("none", None), ("se", "none"), ("lcm1", "none"), ("lcm2", "none"),
        ("lcm2", "se"), ("lcm2", "lcm1"), ("eca", "none"),
    ]  # fmt: skip
    first = [found[pair]["p"] for pair in (("se", "none"), ("lcm1", "none"), ("lcm2", "none"))]
    assert first[1:] == [2 / 256] * 2
    assert found["lcm1", "none"]["p_holm"] == found["lcm2", "none"]["p_holm"] == 3 * 2 / 256
    assert found["lcm2", "se"]["p_holm"] == 2 * 2 / 256  # a family of two
    assert found["lcm1", "none"]["verdict"] == found["lcm2", "se"]["verdict"] == "supported"
    assert found["se", "none"]["verdict"] == "inconclusive"
    assert found["eca", "none"]["verdict"] is None  # nobody planned it
    assert "results/plans/tenth.yaml" in text and "not excluded, all 5 at once (99 %)" in text
    assert [found["lcm1", "none"]["paper"], found["lcm2", "lcm1"]["paper"]] == pytest.approx(
        [69.40 - 68.34, 69.53 - 69.40]
    )
    lcm1 = found["lcm1", "none"]
    d = lcm1["differences"]
    spread = 2.3646 * statistics.stdev(d) * (1 + 1 / 8) ** 0.5  # t of 7 degrees of freedom
    assert lcm1["next_low"] == pytest.approx(statistics.fmean(d) - spread, abs=1e-3)
    assert (lcm1["loss_at_once"], lcm1["gain_at_once"]) == pytest.approx((min(d), max(d)))
    page, pictures = make_report(results)
    assert "comparison-tenth" in page and "judged when" not in page + text
    loss, gain = (signed(found["lcm2", "se"][key]) for key in ("loss", "gain"))
    words = f"lcm2 minus se is below {loss} or above {gain} points (8 pairs;"
    assert f"on CIFAR-100, ResNet-20, schedule=tenth: that {words}" in page
    forest = pictures["against-none-tenth-cifar100"].decode()
    assert "ResNet-20: lcm2 - se" in forest and "the paper" in forest


@pytest.mark.parametrize("seeds, lost, words", [(7, 0, "7"), (2, 1, "1 to 2"), (1, 1, "0 to 1")])
def test_a_plan_is_judged_when_all_its_seeds_are_there(seeds, lost, words, tmp_path):
    """The runs of LCM2 are `lost` behind the others; SE was never run."""
    runs = tenth(seeds, {"lcm1": 1.0, "lcm2": 1.0})
    runs = [run for run in runs if run["attention"] != "lcm2" or run["seed"] < seeds - lost]
    runs += of_one_arm("se", [66.0] * (seeds - lost), **TENTH)
    found, text, results = of_records(tmp_path, runs, Protocol("tenth"))
    lcm1 = found["lcm1", "none"]
    assert (lcm1["verdict"], lcm1["p_holm"]) == ("not tested yet", None)
    assert f"not tested yet ({seeds} of 8 pairs)" in text
    progress = f"CIFAR-100: {words} of 8 pairs; judged when all 8 are there."
    page, pictures = make_report(results)
    block = readme_blocks(read_runs(results / "runs.csv"), results)["comparison-tenth"]
    assert progress in text and progress in block and f"In progress, as planned</b>: {NOT}" in page
    assert "What the runs exclude" not in page
    assert "mean: not tested yet" in pictures["against-none-tenth-cifar100"].decode()
    # what is still to be run is run as planned
    command = (
        "python train.py data=cifar100 model=resnet20 attention=se schedule=tenth compile=true"
    )
    assert (command in text) == (seeds == lost)


NOT = "Not the paper&#39;s schedule: runs with schedule=tenth, precision=fp32. CIFAR-100: "


def test_runs_that_were_not_planned_change_no_planned_row(tmp_path):
    planned = tenth(8, {"lcm1": 1.0, "lcm2": 1.0})
    found, _, _ = of_records(tmp_path / "a", planned, Protocol("tenth"))
    extra = of_one_arm("lcm1", [99.0] * 10, **TENTH)[8:]
    extra += of_one_arm("none", [60.0] * 10, **TENTH)[8:]
    extra += of_one_arm("lcm1", [60.0] * 8, **TENTH | {"compile": False})  # without the compiler
    for index, run in enumerate(extra):
        run["deviations"] = {}
        run["config_hash"] = f"{index:064x}"
        run["run"] = f"cifar100/resnet20/{run['attention']}/seed{run['seed']}-{index:064x}"[:44]
    extra = [run for run in extra if run["seed"] >= 8]
    other, _, _ = of_records(tmp_path / "b", planned + extra, Protocol("tenth"))
    assert str(found) == str(other)
    resnet32 = tenth(8, {"lcm1": 1.0}, model="resnet32")
    more, _, _ = of_records(tmp_path / "c", resnet32, Protocol("tenth"))
    assert more["lcm1", "none"]["verdict"] is None


def test_a_diverged_run_is_the_worst_of_its_arm(tmp_path):
    runs = tenth(8, {"se": 0.0, "lcm1": 1.0, "lcm2": 1.0})
    failed = {"state": "failed", "message": "the loss is not finite in epoch 2"}
    lost = next(run for run in runs if (run["attention"], run["seed"]) == ("lcm1", 3))
    lost |= failed
    found, text, _ = of_records(tmp_path, runs, Protocol("tenth"))
    row = found["lcm1", "none"]
    worst = min(r["top1"] for r in runs if r["attention"] == "lcm1" and r is not lost)
    assert row["differences"][3] == pytest.approx(worst - 65.75, abs=0.006)
    assert (row["pairs"], row["n"], row["diverged"], row["wins"]) == (8, 7, 1, 7 / 8)
    assert "(7 of 8)" in text and row["verdict"] == "inconclusive"


def test_a_network_of_ones_own_has_no_rows_for_sizes_it_does_not_have(tmp_path):
    runs = [
        run
        for attention, gain in (("none", 0), ("se", 1), ("mine", 1))
        for run in of_one_arm(attention, [85 + gain + s / 8 for s in range(8)], model="net")
    ]
    found, text, _ = of_records(
        tmp_path, [r | {"schedule": "short"} for r in runs], Protocol("short")
    )
    assert [a for a, _ in found] == ["none", "se", "mine"] and "python train.py" not in text
    assert found["se", "none"]["p_holm"] == 2 * 2 / 2**8  # a family of two, not of seven
    assert found["se", "none"]["verdict"] == "supported"


def test_pairs_need_the_same_seed_and_the_same_pixels(runs):
    found, text = compared(runs)
    assert found["pairs"] == 3 and found["difference"] == pytest.approx((0.40 - 0.05 + 0.66) / 3)
    assert "different pixels" not in text and "differ in more than the attention" not in text
    none = runs["attention"] == "none"
    other = changed(runs, none & (runs["seed"] == 1), data_fingerprint="other")
    found, text = compared(other)
    assert found["pairs"] == 2 and found["difference"] == pytest.approx((0.40 + 0.66) / 2)
    assert "**The runs on cifar10 saw different pixels**" in text
    cached = changed(runs, runs["attention"] == "lcm2", data_cache="256")
    assert compared(cached)[0]["pairs"] == 0
    assert compared(changed(cached, none, data_cache="256"))[0]["pairs"] == 3


def test_what_the_runs_of_a_pair_differ_in_is_said(runs):
    lcm2 = runs["attention"] == "lcm2"
    first, second = (lcm2 & (runs["seed"] == seed) for seed in (0, 1))
    other = changed(runs, first | second, torch="3.0")
    other = changed(other, first, commit="abc", device="another")
    words = (
        "1 in the commit (lcm2); 2 in the version of torch (lcm2); 1 in the device (lcm2); 1 in "
    )
    text = compared(changed(other, second, compile=True))[1]
    assert f"5 pairs; some differ in more than the attention: {words}" in text


def test_of_several_runs_of_a_seed_the_alike_ones_are_a_pair(runs):
    """Every lcm2 run is compiled; none has a plain run and a compiled one of each seed."""
    lcm2 = (runs["attention"] == "lcm2").to_numpy()
    none = (runs["attention"] == "none") & (runs["schedule"] == "cifar")
    none = (none & (runs["data"] == "cifar10")).to_numpy()
    mixed = changed(runs, lcm2, compile=True)
    assert "in the use of `compile=true` (lcm2)" in compared(mixed)[1]
    compiled = more(mixed, none, compile=True, test_top1=90.0)
    found, text = compared(compiled)
    assert "in the use of" not in text and found["differences"] == pytest.approx(
        (2.5, 2.35, 2.71), abs=1e-9
    )
    other = more(mixed, none, commit="another", torch="3.0", compile=False, test_top1=80.0)
    again = more(other, [*none, *([False] * none.sum())], compile=True, torch="3.0", test_top1=70.0)
    assert compared(again)[0]["differences"] == pytest.approx((22.5, 22.35, 22.71), abs=1e-9)
