"""The tables: byte for byte from a small stored runs.csv, of no run, one run and three seeds."""

import pytest
import tables as script
from invented_runs import ROOT, STORED, changed, more

from lcm.reporting.protocol import (
    ARM,
    Protocol,
    in_order,
    paper_comparison,
    protocols,
    select,
)
from lcm.reporting.render import (
    DASH,
    elapsed,
    fill_blocks,
    latex,
    markdown,
    pipes,
    reached,
    rounded,
    signed,
)
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import TITLES, build, comparison_table, counts, read_paper


def tables(runs, results, *protocol):
    return {table.name: table for table in build(runs, Protocol(*protocol), results)}


def arms(runs, *protocol):
    """{(data, model, attention): its seeds}"""
    used = select(runs, Protocol(*protocol)).query("used")
    return {name: list(arm["seed"]) for name, arm in used.groupby(ARM, sort=False)}


def test_stored_tables_byte_for_byte(results):
    script.main(["--results", str(results)])
    names = [file.name for file in STORED.iterdir()]
    different = [n for n in names if (results / n).read_bytes() != (STORED / n).read_bytes()]
    assert len(names) >= 12 and different == []


def test_numbers_by_hand(results, runs):
    table = tables(runs, results)["table2"]
    lcm2 = table.records.set_index(ARM).loc["cifar10", "resnet20", "lcm2"]
    # 92.50, 92.35, 92.71; the paper says 92.70
    assert [lcm2["mean"], lcm2["difference"]] == pytest.approx([92.52, -0.18])
    assert lcm2["deviation"] == pytest.approx(((0.02**2 + 0.17**2 + 0.19**2) / 2) ** 0.5)
    assert (lcm2["n"], lcm2["seeds"]) == (3, "0 1 2")
    mini = changed(
        runs,
        runs["attention"] == "lcm2",
        data="mini_imagenet",
        model="resnet50",
        schedule="mini_imagenet",
    )
    both = tables(mini, results)["table5"].records["mean"].dropna()
    assert both.tolist() == pytest.approx([92.52, 99.25], abs=0.01)  # and top-5
    rows = {row[0]: row for row in table.rows}
    assert rows["ResNet-20+LCM2"][6:9] == ["92.70", "92.52 ± 0.18 (3)", "-0.18"]
    # the second seed of LCM1 diverged, a further one deviates; a cell without a run has a dash and
    # a command
    assert arms(runs)["cifar10", "resnet20", "lcm1"] == [0]
    words = ["92.77", "92.77 ± – (1 of 2)", "0.00", "69.40", DASH, DASH]
    assert rows["ResNet-20+LCM1"][6:] == words
    assert "the loss stopped being a finite number in epoch 2" in markdown(table)
    command = "python train.py experiment=table2 model=resnet20 attention=lcm1 data=cifar10"
    assert f"{command}0" in table.missing and command not in table.missing


def test_other_protocols_are_named_loudly(results, runs):
    expected = [Protocol(), Protocol(None, "bf16"), Protocol("digits"), Protocol("short", "bf16")]
    assert protocols(runs) == expected
    for changes in ({"state": "failed"}, {"deviations": '{"data.pad":2}'}):
        some = changed(runs, runs["seed"] == 0, deviations="{}")
        assert protocols(more(some, some["seed"] == 0, schedule="mine", **changes)) == expected
    table = tables(runs, results, "short", "bf16")["table2-short-bf16"]
    for text in (markdown(table), latex(table)):
        assert "NOT the paper's schedule" in text and "schedule=short, precision=bf16" in text
    assert all(command.endswith("schedule=short precision=bf16") for command in table.missing)
    assert "precision=bf16" in markdown(tables(runs, results, None, "bf16")["table2-bf16"])
    # the paper's runs are never shown as another protocol's
    mixed = more(runs, (runs["data"] == "digits"), schedule="cifar")
    assert Protocol("cifar") in protocols(mixed)
    assert {data for data, *_ in arms(mixed, "cifar")} == {"digits"}
    assert list(tables(mixed, results, "cifar")) == ["comparison-cifar"]


def test_no_run_at_all(results):
    none = read_runs("nowhere")
    made, paper = tables(none, results), read_paper(results)
    assert list(made) == [f"table{n}" for n in TITLES]
    assert [len(table.rows) for table in made.values()] == [9, 6, 12, 12, 18]
    for number, table in zip(TITLES, made.values(), strict=True):
        printed = paper[paper["table"] == number]  # in the paper's order
        assert list(table.records["label"]) == list(printed["label"])
        assert list(table.records["paper"].astype(float)) == list(printed["value"])
        assert len(table.missing) == len(printed.drop_duplicates(["label", "data"]))
        assert all(row[7] == row[8] == DASH for row in table.rows)
    assert tables(none, results, "short") == {}


def test_two_runs_of_one_seed_count_once(results, runs):
    none = (runs["run"] == "cifar10/resnet20/none/seed0-200cf32a").to_numpy()
    doubled = more(runs, none, compile=True, test_top1=50.0, start="2020-01-01T00:00:00+00:00")
    doubled = more(doubled, [*none, False], test_top1=50.0, start="2030-01-01T00:00:00+00:00")
    plain = tables(runs, results)["table2"].rows
    # nor does one that diverged beside one that did not
    failed = {
        "state": "failed",
        "message": "the loss stopped being a finite number",
        "test_top1": float("nan"),
        "start": "2020-01-01T00:00:00+00:00",
    }
    assert tables(more(runs, none, **failed), results)["table2"].rows == plain
    # a run that does not say whether it was compiled is taken for a plain one
    for some in (doubled, changed(doubled, [*none, False, False], compile=None)):
        table = tables(some, results)["table2"]
        assert table.rows == plain
        names = "`; `".join(doubled["run"].iloc[[-1, -2]])
        assert f"A second run of the same seed, not in the means: `{names}`" in markdown(table)


def test_notes_on_the_runs_of_a_table(results, runs):
    lcm2 = (runs["attention"] == "lcm2") & (runs["precision"] == "fp32")
    first = lcm2 & (runs["seed"] == 0)
    plain = markdown(tables(runs, results)["table2"])
    assert not any(word in plain for word in ("compile=true", "verify", "different", "checkout"))
    some = changed(changed(runs, first, dirty=True), lcm2, data_verified=False)
    text = markdown(tables(some, results)["table2"])
    assert "1 of them from a checkout with uncommitted changes." in text
    assert f"{lcm2.sum()} of them with `data.verify=false`" in text
    text = markdown(tables(changed(runs, lcm2, compile=True), results)["table2"])
    assert f"{lcm2.sum()} of them with `compile=true`" in text


def test_what_the_paper_does_not_know_has_its_rows(runs):
    mine = (runs["attention"] == "gc").to_numpy()
    runs = more(runs, mine, attention="mine")
    runs = more(runs, [*mine, *([False] * mine.sum())], model="net", attention="alpha")
    shown = [row[1:3] for row in comparison_table(runs, Protocol("digits"), ROOT / "results").rows]
    assert [name for network, name in shown if network == "resnet20"][-2:] == ["lcm2", "mine"]
    assert shown[-1] == ["net", "alpha"]
    assert [name for _, *name in arms(runs, "digits")] == [
        ["resnet20", "none"], ["resnet20", "gc"], ["resnet20", "mine"], ["net", "alpha"],
    ]  # fmt: skip
    assert in_order(["z", "lcm2", "a", "none", "a"]) == ["none", "lcm2", "a", "z"]


SE50 = {"data": "mini_imagenet", "model": "resnet50", "attention": "se"}
LINE = "the (retracted) paper prints top-1 81.46 %, top-5 94.94 % for this row"
TWICE = {"data": "cifar10", "model": "densenet100", "attention": "lcm2"}  # in Tables 1 and 3


@pytest.mark.parametrize(
    "changes, line",
    [
        ({}, LINE),
        (
            {"schedule": "cifar", "epochs": 300, "deviations": {"attention.reduction": 8}},
            f"{LINE}, under its own protocol; this run differs: schedule=cifar, "
            "schedule.epochs=300, attention.reduction=8",
        ),
        (
            {"schedule": "short", "epochs": 5, "deviations": {"schedule.epochs": 5}},
            f"{LINE}, under its own protocol; this run differs: schedule=short, schedule.epochs=5",
        ),
        (
            {"epochs": 400, "deviations": {"schedule.epochs": 400}},
            f"{LINE}, under its own protocol; this run differs: schedule.epochs=400",
        ),
        (
            {"deviations": {"attention.reduction": 8}},
            f"{LINE}, under its own protocol; this run differs: attention.reduction=8",
        ),
        (
            {"schedule": "short", "epochs": 10},
            f"{LINE}, under its own protocol; this run differs: schedule=short, schedule.epochs=10",
        ),
        ({"model": "resnet20"}, ""),
        (
            TWICE | {"schedule": "cifar"},
            "the (retracted) paper prints top-1 96.01 % for this row",
        ),
    ],
)
def test_the_line_beside_a_result_is_true_for_every_deviation(changes, line):
    state = SE50 | {"schedule": "mini_imagenet", "epochs": 100, "deviations": {}} | changes
    assert paper_comparison(state) == line


@pytest.mark.parametrize(
    "made, words",
    [
        *((rounded(*n), w) for n, w in {
            (23.1848, 3): "23.185", (0.125, 2): "0.13", (-0.125, 2): "-0.13", (None, 2): DASH,
            (float("nan"), 2): DASH, (1, 0): "1",
            ((85.5 + 85.21) / 2, 2): "85.36", (-0.6749999999999999, 2): "-0.68",
        }.items()),
        *((signed(n), w) for n, w in {
            0.594: "+0.59", -0.07: "-0.07", 0.0: "0.00", -0.001: "0.00", None: DASH,
        }.items()),
        *((elapsed(seconds), w) for seconds, w in {
            5: "1 minute", 90: "2 minutes", 3540: "59 minutes", 3600: "1.0 hours",
            46800: "13.0 hours",
        }.items()),
        (reached({"n": 0, "diverged": 0}), DASH),
        (reached({"n": 0, "diverged": 2}), f"{DASH} (0 of 2)"),
        (reached({"mean": 92.0, "deviation": None, "n": 1, "diverged": 0}), "92.00 ± – (1)"),
        (reached({"mean": 2.0, "deviation": 1.414, "n": 2, "diverged": 1}), "2.00 ± 1.41 (2 of 3)"),
        (pipes(["a"], [["x|y\nz"], ["<0.001"]]), "| a |\n| --- |\n| x\\|y z |\n| <0.001 |"),
    ],
)  # fmt: skip
def test_numbers_as_text(made, words):
    assert made == words


def test_latex_is_a_table_that_compiles_by_its_looks(results, runs):
    runs = changed(runs, runs["state"] == "failed", message="first line\nsecond & third")
    for table in build(runs, Protocol(), results):
        odd = ["<0.001", "a_b^{c}%", "[-0.61, +0.33]", *table.rows[0][3:]]
        table = table._replace(narrow=(), rows=[*table.rows, odd])
        body = [line for line in latex(table).splitlines() if not line.startswith("%")]
        rows = [line for line in body if line.endswith(r" \\")]
        assert len(rows) == 1 + len(table.rows)
        assert {line.count(" & ") for line in rows} == {len(table.header) - 1}
        assert body[0].startswith(r"\begin{tabular}{l") and body[-1] == r"\end{tabular}"
        text = "\n".join(body)
        assert not any(character in text for character in "±–`") and "second" not in text
        assert r"$<$0.001 & a\_b\textasciicircum \{c\}\% & [$-0.61$, $+0.33$]" in rows[-1]


def test_the_blocks_of_a_readme(results, runs):
    empty = "a\n<!-- results:begin {} -->\nold\n<!-- results:end -->\nb\n"
    text = "".join(map(empty.format, ("table2", "comparison-tenth", "comparison-digits")))
    made = [*build(runs, Protocol(), results), *build(runs, Protocol("digits"), results)]
    filled = fill_blocks(text, made)
    assert "old" not in filled and "| ResNet-20+LCM2 |" in filled
    assert filled.startswith("a\n<!-- results:begin table2 -->\n| Model") and filled.endswith("b\n")
    # a plan without runs; another schedule says that it is not the paper's
    assert "comparison-tenth -->\nNothing was run yet.\n<!--" in filled
    assert "comparison-digits -->\nNot the paper's schedule" in filled
    assert fill_blocks(filled, made) == filled


def test_what_was_run_keeps_other_settings_apart(runs):
    rows = counts(runs).rows
    first = ["CIFAR-10", "cifar", "fp32", "none", "resnet20", "invented", "7", "1", "8 minutes"]
    assert first in rows
    assert ["schedule.epochs=3", "resnet20", "invented", "1", "0"] in [row[3:8] for row in rows]
