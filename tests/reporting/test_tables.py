"""The tables: byte for byte from a small stored runs.csv, with no run, with one run and with three
seeds.
"""

import csv
import runpy

import pytest
from invented_runs import ROOT, STORED, changed, more
from omegaconf import OmegaConf

from lcm.config import compose
from lcm.errors import UserError
from lcm.reporting.protocol import (
    ARM,
    PAPER_SCHEDULE,
    Protocol,
    in_order,
    paper_accuracy,
    paper_comparison,
    protocols,
    select,
)
from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.render import DASH, elapsed, latex, markdown, pipes, reached, rounded, signed
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import TITLES, build, comparison_table, counts

main = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"]


def tables(runs, results, protocol=None):
    return {table.name: table for table in build(runs, protocol or Protocol(), results)}


def arms(runs, protocol):
    """{(data, model, attention): its seeds}"""
    selected = select(runs, protocol)
    used = selected[selected["used"]].groupby(ARM, sort=False)
    return {name: list(arm["seed"]) for name, arm in used}


def test_stored_tables_byte_for_byte(results):
    for _ in range(2):  # and again
        main(["--all", "--results", str(results)])
        given = ("runs.csv", "complexity.csv")
        expected = [file for file in STORED.iterdir() if file.name not in given]
        assert len(expected) >= 10
        for file in expected:
            assert (results / file.name).read_bytes() == file.read_bytes(), file.name


def test_numbers_by_hand(results, runs):
    table = tables(runs, results)["table2"]
    names = ["attention", "data", "model"]
    lcm2 = table.records.set_index(names).loc["lcm2", "cifar10", "resnet20"]
    # 92.50, 92.35, 92.71; the paper says 92.70
    assert lcm2["mean"] == pytest.approx(92.52) and lcm2["difference"] == pytest.approx(-0.18)
    assert lcm2["deviation"] == pytest.approx(((0.02**2 + 0.17**2 + 0.19**2) / 2) ** 0.5)
    assert (lcm2["n"], lcm2["seeds"]) == (3, "0 1 2")
    rows = {row[0]: row for row in table.rows}
    assert rows["ResNet-20+LCM2"][6:9] == ["92.70", "92.52 ± 0.18 (3)", "-0.18"]
    # the second seed of LCM1 diverged; a cell without a run has a dash and a command
    words = ["92.77", "92.77 ± – (1 of 2)", "0.00", "69.40", DASH, DASH]
    assert rows["ResNet-20+LCM1"][6:] == words
    command = "python train.py experiment=table2 model=resnet20 attention=lcm1 data=cifar10"
    assert f"{command}0" in table.missing and command not in table.missing


def test_failed_and_deviating_runs_enter_no_mean(results, runs):
    lcm1 = runs[(runs["attention"] == "lcm1") & (runs["data"] == "cifar10")]
    assert set(lcm1["state"]) == {"finished", "failed"} and (lcm1["deviations"] != "{}").any()
    assert arms(runs, Protocol())["cifar10", "resnet20", "lcm1"] == [0]
    assert "the loss is not finite in epoch 2" in markdown(tables(runs, results)["table2"])


def test_other_protocols_are_named_loudly(results, runs):
    expected = [Protocol(), Protocol(None, "bf16"), Protocol("digits"), Protocol("short", "bf16")]
    assert protocols(runs) == expected
    for changes in ({"state": "failed"}, {"deviations": '{"data.pad":2}'}):
        some = changed(runs, runs["seed"] == 0, deviations="{}")
        assert protocols(more(some, some["seed"] == 0, schedule="mine", **changes)) == expected
    table = tables(runs, results, Protocol("short", "bf16"))["table2-short-bf16"]
    for text in (markdown(table), latex(table)):
        assert "NOT the paper's schedule" in text and "schedule=short, precision=bf16" in text
    assert all(command.endswith("schedule=short precision=bf16") for command in table.missing)
    bf16 = tables(runs, results, Protocol(None, "bf16"))["table2-bf16"]
    assert "precision=bf16" in markdown(bf16)


def test_the_papers_runs_are_never_shown_as_another_protocols(results, runs, capsys):
    mixed = more(runs, (runs["data"] == "digits"), schedule="cifar")
    assert Protocol("cifar") in protocols(mixed)
    assert {data for data, *_ in arms(mixed, Protocol("cifar"))} == {"digits"}
    assert list(tables(mixed, results, Protocol("cifar"))) == ["comparison-cifar"]
    for schedule, words in (
        ("cifar", "cifar is a schedule of the paper: leave --schedule out"),
        ("shrot", "schedule=shrot"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["--schedule", schedule, "--results", str(results)])
        assert end.value.code == 2 and words in capsys.readouterr().err


def test_no_run_at_all(results):
    none = read_runs("nowhere")
    made, rows = tables(none, results), list(csv.DictReader((results / "paper.csv").open()))
    assert list(made) == [f"table{n}" for n in TITLES]
    assert sum(len(table.rows) for table in made.values()) == 57
    for table in made.values():
        paper = [line for line in rows if f"table{line['table']}" == table.name]
        # the paper's order
        assert list(table.records["label"]) == [line["label"] for line in paper]
        assert list(table.records["paper"]) == [line["value"] for line in paper]
        assert len(table.missing) == len({(line["label"], line["data"]) for line in paper})
        assert all(row[7] == row[8] == DASH for row in table.rows)
    assert build(none, Protocol("short"), results) == []
    for file in ("complexity.csv", "paper.csv"):
        (results / file).unlink()
        with pytest.raises(UserError, match=f"{file} is missing"):
            build(none, Protocol(), results)


def test_two_runs_of_one_seed_count_once(results, runs):
    none = (runs["run"] == "cifar10/resnet20/none/seed0-200cf32a").to_numpy()
    doubled = more(runs, none, compile=True, test_top1=50.0, start="2020-01-01T00:00:00+00:00")
    doubled = more(doubled, [*none, False], test_top1=50.0, start="2030-01-01T00:00:00+00:00")
    # a run that does not say whether it was compiled is taken for a plain one
    for some in (doubled, changed(doubled, [*none, False, False], compile=None)):
        selected = select(some, Protocol())
        further = selected[~selected["used"] & (selected["state"] == "finished")]
        assert sorted(further["run"]) == sorted(doubled["run"].iloc[-2:])
        table = tables(some, results)["table2"]
        assert table.rows == tables(runs, results)["table2"].rows
        assert "A second run of the same seed, not in the means" in markdown(table)


def test_notes_on_the_runs_of_a_table(results, runs):
    lcm2 = (runs["attention"] == "lcm2") & (runs["precision"] == "fp32")
    first = lcm2 & (runs["seed"] == 0)

    def text(runs):
        return markdown(tables(runs, results)["table2"])

    plain = text(runs)
    assert not any(word in plain for word in ("compile=true", "verify", "different", "checkout"))
    for some, changes, words in (
        (first, {"dirty": True}, "1 of them from a checkout with uncommitted changes."),
        (lcm2, {"compile": True}, f"{lcm2.sum()} of them with `compile=true`"),
        (lcm2, {"data_verified": False}, f"{lcm2.sum()} of them with `data.verify=false`"),
        (first, {"data_fingerprint": "other"}, "**The runs on cifar10 saw different pixels**"),
        (first, {"data_cache": "256"}, "**The runs on cifar10 saw different pixels**"),
    ):
        assert words in text(changed(runs, some, **changes)), words


def test_what_the_paper_does_not_know_has_its_rows(runs):
    mine = (runs["attention"] == "gc").to_numpy()
    runs = more(runs, mine, attention="mine")
    runs = more(runs, [*mine, *([False] * mine.sum())], model="net", attention="alpha")
    table = comparison_table(runs, Protocol("digits"), ROOT / "results")
    shown = [row[1:3] for row in table.rows]
    assert [name for network, name in shown if network == "resnet20"][-2:] == ["lcm2", "mine"]
    assert shown[-1] == ["net", "alpha"]
    assert [name for _, *name in arms(runs, Protocol("digits"))] == [
        ["resnet20", "none"], ["resnet20", "gc"], ["resnet20", "mine"], ["net", "alpha"],
    ]  # fmt: skip
    assert in_order(["z", "lcm2", "a", "none", "a"]) == ["none", "lcm2", "a", "z"]


def test_the_protocols_facts_are_the_configs():
    data = set()
    for number in TITLES:
        experiment = OmegaConf.load(compose.CONFIGS / "experiment" / f"table{number}.yaml")
        data |= set(experiment["hydra"]["sweeper"]["params"]["data"].split(","))
    printed = csv.DictReader((ROOT / "results/paper.csv").open())
    assert data == set(PAPER_SCHEDULE) == {row["data"] for row in printed}
    for name in data:
        assert compose.load("schedule", name)["name"] == PAPER_SCHEDULE[name]
    assert paper_accuracy("mini_imagenet", "resnet50", "se") == {"top1": 81.46, "top5": 94.94}


def test_the_line_beside_a_result_is_true_for_every_deviation():
    names = {"data": "mini_imagenet", "model": "resnet50", "attention": "se"}
    state = names | {"schedule": "mini_imagenet", "epochs": 100}
    line = "the (retracted) paper prints top-1 81.46 %, top-5 94.94 % for this row"
    assert paper_comparison(state | {"deviations": {}}) == line
    other = state | {"schedule": "cifar", "epochs": 300, "deviations": {"attention.reduction": 8}}
    differs = "schedule=cifar, schedule.epochs=300, attention.reduction=8"
    assert paper_comparison(other) == f"{line}, under its own protocol; this run differs: {differs}"
    assert paper_comparison(state | {"model": "resnet20"}) == ""


def test_numbers_as_text():
    numbers = (23.1848, 3), (0.125, 2), (-0.125, 2), (None, 2), (float("nan"), 2), (1, 0)
    assert [rounded(*number) for number in numbers] == ["23.185", "0.13", "-0.13", DASH, DASH, "1"]
    found = [signed(x) for x in (0.594, -0.07, 0.0, -0.001, None)]
    assert found == ["+0.59", "-0.07", "0.00", "0.00", DASH]
    found = [elapsed(seconds) for seconds in (5, 90, 3540, 3600, 46800)]
    assert found == ["1 minute", "2 minutes", "59 minutes", "1.0 hours", "13.0 hours"]
    for facts, words in (
        ((None, None, 0, 0), DASH),
        ((None, None, 0, 2), f"{DASH} (0 of 2)"),
        ((92.0, None, 1, 0), "92.00 ± – (1)"),
        ((2.0, 1.414, 2, 1), "2.00 ± 1.41 (2 of 3)"),
    ):
        assert (
            reached(dict(zip(("mean", "deviation", "n", "diverged"), facts, strict=True))) == words
        )
    assert pipes(["a"], [["x|y\nz"], ["<0.001"]]).splitlines()[2:] == [r"| x\|y z |", "| <0.001 |"]


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


def test_readme(results, runs):
    blocks = readme_blocks(runs, results)
    empty = "a\n<!-- results:begin {} -->\nold\n<!-- results:end -->\nb\n"
    text = "".join(map(empty.format, ("table2", "counts", "comparison-tenth", "comparison-digits")))
    filled = fill_readme(text, blocks)
    assert "old" not in filled and "| ResNet-20+LCM2 |" in filled
    assert "| CIFAR-10 | cifar | fp32 | – | resnet20 | invented | 7 | 1 | 8 minutes |" in filled
    assert "| CIFAR-10 | cifar | fp32 | schedule.epochs=3 | resnet20 | invented | 1 | 0 |" in filled
    assert filled.startswith("a\n<!-- results:begin table2 -->\n| Model") and filled.endswith("b\n")
    # a plan without runs; another schedule says that it is not the paper's
    assert "comparison-tenth -->\nNothing was run yet.\n<!--" in filled
    assert "comparison-digits -->\nNot the paper's schedule" in filled
    assert fill_readme(filled, blocks) == filled
    with pytest.raises(UserError, match="no result is called table9"):
        fill_readme(empty.format("table9"), blocks)


def test_what_was_run_keeps_other_settings_apart(runs):
    rows = {tuple(row[:4]): row for row in counts(runs).rows}
    assert rows["CIFAR-10", "cifar", "fp32", DASH][-3:-1] == ["7", "1"]
    assert rows["CIFAR-10", "cifar", "fp32", "schedule.epochs=3"][-3:-1] == ["1", "0"]
