"""The tables: byte for byte from a small stored runs.csv, with no run at all, with one run and with three seeds."""

import csv
import runpy

import pandas as pd
import pytest
from invented_runs import ROOT, STORED, changed, more
from omegaconf import OmegaConf

from lcm.config import compose
from lcm.errors import UserError
from lcm.reporting.protocol import (
    PAPER_SCHEDULE,
    Protocol,
    in_order,
    paper_accuracy,
    paper_comparison,
    paper_epochs,
    protocols,
    select,
)
from lcm.reporting.readme import fill_readme, readme_blocks, summary
from lcm.reporting.render import DASH, accuracy, elapsed, latex, markdown, pipes, rounded, signed
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import TITLES, build, comparison_table

main = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"]


def tables(runs, results, protocol=None):
    return {table.name: table for table in build(runs, protocol or Protocol(), results)}


def test_stored_tables_byte_for_byte(results):
    for _ in range(2):  # and again
        main(["--all", "--results", str(results)])
        expected = [
            file for file in STORED.iterdir() if file.name not in ("runs.csv", "complexity.csv")
        ]
        assert len(expected) >= 10
        for file in expected:
            assert (results / file.name).read_bytes() == file.read_bytes(), file.name


def test_numbers_by_hand(results, runs):
    table = tables(runs, results)["table2"]
    lcm2 = table.records.set_index(["attention", "data", "model"]).loc[
        "lcm2", "cifar10", "resnet20"
    ]
    # 92.50, 92.35, 92.71; the paper says 92.70
    assert lcm2["mean"] == pytest.approx(92.52) and lcm2["difference"] == pytest.approx(-0.18)
    assert lcm2["deviation"] == pytest.approx(((0.02**2 + 0.17**2 + 0.19**2) / 2) ** 0.5)
    assert (lcm2["n"], lcm2["seeds"]) == (3, "0 1 2")
    row = next(row for row in table.rows if row[0] == "ResNet-20+LCM2")
    assert row[6:9] == ["92.70", "92.52 ± 0.18 (3)", "-0.18"]


def test_one_run_has_no_deviation_and_a_missing_one_a_dash_and_a_command(results, runs):
    table = tables(runs, results)["table2"]
    row = next(row for row in table.rows if row[0] == "ResNet-20+LCM1")
    # its second seed diverged
    assert row[6:] == ["92.77", "92.77 ± – (1 of 2)", "0.00", "69.40", DASH, DASH]
    assert (
        "python train.py experiment=table2 model=resnet20 attention=lcm1 data=cifar100"
        in table.missing
    )
    assert (
        "python train.py experiment=table2 model=resnet20 attention=lcm1 data=cifar10"
        not in table.missing
    )


def test_failed_and_deviating_runs_enter_no_mean(results, runs):
    lcm1 = runs[(runs["attention"] == "lcm1") & (runs["data"] == "cifar10")]
    assert set(lcm1["state"]) == {"finished", "failed"} and (lcm1["deviations"] != "{}").any()
    assert list(select(runs, Protocol()).arms()["cifar10", "resnet20", "lcm1"]["seed"]) == [0]
    assert "the loss is not finite in epoch 2" in markdown(tables(runs, results)["table2"])


def test_other_protocols_are_named_loudly(results, runs):
    expected = [Protocol(), Protocol(None, "bf16"), Protocol("digits"), Protocol("short", "bf16")]
    assert protocols(runs) == expected
    for changes in (
        {"state": "failed", "deviations": "{}"},
        {"state": "finished", "deviations": '{"data.pad":2}'},
    ):
        assert protocols(more(runs, runs["seed"] == 0, schedule="mine", **changes)) == expected
    table = tables(runs, results, Protocol("short", "bf16"))["table2-short-bf16"]
    for text in (markdown(table), latex(table)):
        assert "NOT the paper's schedule" in text and "schedule=short, precision=bf16" in text
    assert all(command.endswith("schedule=short precision=bf16") for command in table.missing)
    assert "precision=bf16" in markdown(
        tables(runs, results, Protocol(None, "bf16"))["table2-bf16"]
    )


def test_the_papers_runs_are_never_shown_as_another_protocols(results, runs, capsys):
    mixed = more(runs, (runs["data"] == "digits"), schedule="cifar")
    assert Protocol("cifar") in protocols(mixed)
    assert set(select(mixed, Protocol("cifar")).runs["data"]) == {"digits"}
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
        assert list(table.records["label"]) == [
            line["label"] for line in paper
        ]  # the paper's order
        assert list(table.records["paper"]) == [line["value"] for line in paper]
        assert len(table.missing) == len({(line["label"], line["data"]) for line in paper})
        assert all(row[7] == row[8] == DASH for row in table.rows)
    assert build(none, Protocol("short"), results) == []


def test_missing_counts_name_their_command(results, runs):
    (results / "complexity.csv").unlink()
    table = tables(runs, results)["table2"]
    assert "python scripts/complexity.py --csv results/complexity.csv" in markdown(table)
    assert table.rows[0][2] == table.rows[0][4] == table.rows[0][5] == DASH


def test_two_runs_of_one_seed_count_once(results, runs):
    none = (runs["run"] == "cifar10/resnet20/none/seed0-200cf32a").to_numpy()
    doubled = more(runs, none, compile=True, test_top1=50.0, start="2020-01-01T00:00:00+00:00")
    doubled = more(doubled, [*none, False], test_top1=50.0, start="2030-01-01T00:00:00+00:00")
    selection = select(doubled, Protocol())
    assert (
        selection.arms()["cifar10", "resnet20", "none"]["run"].iloc[0] == runs[none]["run"].iloc[0]
    )
    assert sorted(selection.duplicates.index) == [len(runs), len(runs) + 1]
    unknown = changed(
        doubled, doubled["run"] == runs[none]["run"].iloc[0], compile=pd.NA
    )  # is taken for a plain one
    assert sorted(select(unknown, Protocol()).duplicates.index) == [len(runs), len(runs) + 1]
    table = tables(doubled, results)["table2"]
    assert table.rows == tables(runs, results)["table2"].rows
    assert "A second run of the same seed, not in the means" in markdown(table)


def compared(runs):
    """(lcm2 against none, the whole comparison as text) of runs of the paper's schedule."""
    table = comparison_table(runs, Protocol(), ROOT / "results")
    return table.records[table.records["attention"] == "lcm2"].iloc[0], markdown(table)


def test_pairs_need_the_same_seed_and_the_same_files(runs):
    found, text = compared(runs)
    assert found["pairs"] == 3 and found["difference"] == pytest.approx((0.40 - 0.05 + 0.66) / 3)
    assert "different files" not in text and "more than the attention" not in text
    other = changed(
        runs, (runs["attention"] == "none") & (runs["seed"] == 1), data_fingerprint="other"
    )
    found, text = compared(other)
    assert found["pairs"] == 2 and found["difference"] == pytest.approx((0.40 + 0.66) / 2)
    assert "different files of cifar10" in text


def test_what_the_runs_of_a_pair_differ_in_is_said(runs):
    lcm2 = (runs["attention"] == "lcm2") & (runs["seed"] < 2)
    other = changed(
        changed(runs, lcm2, torch="3.0"), lcm2 & (runs["seed"] == 0), commit="abc", device="another"
    )
    other = changed(other, lcm2 & (runs["seed"] == 1), compile=True)
    words = (
        "1 in the commit (lcm2); 2 in the version of torch (lcm2); 1 in the device (lcm2); 1 in the"
    )
    assert f"5 pairs; some differ in more than the attention: {words}" in compared(other)[1]


def test_notes_on_the_runs_of_a_table(results, runs):
    lcm2 = (runs["attention"] == "lcm2") & (runs["precision"] == "fp32")
    first = lcm2 & (runs["seed"] == 0)

    def text(runs):
        return markdown(tables(runs, results)["table2"])

    mixed = text(changed(runs, first, epochs=300, dirty=True))
    assert "different lengths**: 3, 300 epochs" in mixed
    assert "1 of them from a checkout with uncommitted changes." in mixed
    plain = text(runs)
    assert not any(word in plain for word in ("compile=true", "verify", "different", "regions"))
    assert f"{lcm2.sum()} of them with `compile=true`" in text(changed(runs, lcm2, compile=True))
    assert f"{lcm2.sum()} of them with `data.verify=false`" in text(
        changed(runs, lcm2, data_verified=False)
    )


def test_table_5_says_from_which_pixels_regions_were_cut(results, runs):
    names = {
        "data": "mini_imagenet",
        "schedule": "mini_imagenet",
        "model": "resnet50",
        "data_cache": "",
    }
    some = runs.head(4)[lambda r: r["state"] == "finished"].assign(
        **names, deviations="{}", attention="se"
    )
    some = some.assign(seed=range(len(some)), data_cache=["256", "files", "full size"])
    text = markdown(tables(some, results)["table5"])
    cached = ("a short side of 256 pixels", "full size")
    for source in (
        "the files' own pixels (`data.cache=false`)",
        *(f"images cached at {size}" for size in cached),
    ):
        assert f"1 of them cut their training regions from {source}." in text


def test_what_the_paper_does_not_know_has_its_rows(results, runs):
    mine = (runs["attention"] == "gc").to_numpy()
    runs = more(runs, mine, attention="mine")
    runs = more(runs, [*mine, *([False] * mine.sum())], model="net", attention="alpha")
    table = comparison_table(runs, Protocol("digits"), ROOT / "results")
    shown = [row[1:3] for row in table.rows]
    assert [name for network, name in shown if network == "resnet20"][-2:] == ["lcm2", "mine"]
    assert shown[-1] == ["net", "alpha"]
    assert "| lcm2 | alpha | mine |" in summary(runs, results)
    arms = [arm[1:] for arm in select(runs, Protocol("digits")).arms()]
    assert arms == [
        ("resnet20", "none"),
        ("resnet20", "gc"),
        ("resnet20", "mine"),
        ("net", "alpha"),
    ]
    assert in_order(["z", "lcm2", "a", "none", "a"]) == ["none", "lcm2", "a", "z"]


def test_the_protocols_facts_are_the_configs():
    experiments = [
        OmegaConf.load(compose.CONFIGS / "experiment" / f"table{number}.yaml") for number in TITLES
    ]
    data = {
        name for e in experiments for name in e["hydra"]["sweeper"]["params"]["data"].split(",")
    }
    assert (
        data
        == set(PAPER_SCHEDULE)
        == {row["data"] for row in csv.DictReader((ROOT / "results/paper.csv").open())}
    )
    assert {name: paper_epochs(name) for name in data} == {
        "cifar10": 300,
        "cifar100": 300,
        "mini_imagenet": 100,
    }
    for name in data:
        schedule = compose.load("schedule", name)
        assert schedule["name"] == PAPER_SCHEDULE[name]
    assert paper_accuracy("mini_imagenet", "resnet50", "se") == {"top1": 81.46, "top5": 94.94}
    assert paper_accuracy("digits", "resnet20", "none") == {}


def test_the_line_beside_a_result_is_true_for_every_deviation():
    names = {"data": "mini_imagenet", "model": "resnet50", "attention": "se"}
    state = names | {"schedule": "mini_imagenet", "epochs": 100}
    line = "the (retracted) paper prints top-1 81.46 %, top-5 94.94 % for this row"
    assert paper_comparison(state | {"deviations": {}}) == line
    other = state | {"schedule": "cifar", "epochs": 300, "deviations": {"attention.reduction": 8}}
    differs = "schedule=cifar, schedule.epochs=300, attention.reduction=8"
    assert paper_comparison(other) == f"{line}, under its own protocol; this run differs: {differs}"
    assert paper_comparison(state | {"model": "resnet20"}) == ""


def test_rounded():
    numbers = (23.1848, 3), (0.125, 2), (-0.125, 2), (None, 2), (float("nan"), 2), (1, 0)
    assert [rounded(*number) for number in numbers] == ["23.185", "0.13", "-0.13", DASH, DASH, "1"]


def test_elapsed():
    assert [elapsed(seconds) for seconds in (5, 90, 3540, 3600, 46800)] == [
        "1 minute", "2 minutes", "59 minutes", "1.0 hours", "13.0 hours",
    ]  # fmt: skip


def test_signed_and_accuracy_and_pipes():
    assert [signed(x) for x in (0.594, -0.07, 0.0, -0.001, None)] == [
        "+0.59",
        "-0.07",
        "0.00",
        "0.00",
        DASH,
    ]
    assert (
        accuracy([]) == DASH
        and accuracy([92.0]) == "92.00 ± – (1)"
        and accuracy([1.0, 3.0]) == "2.00 ± 1.41 (2)"
    )
    assert pipes(["a"], [["x|y\nz"], ["<0.001"]]).splitlines()[2:] == [r"| x\|y z |", "| <0.001 |"]


def test_latex_is_a_table_that_compiles_by_its_looks(results, runs):
    runs = changed(runs, runs["state"] == "failed", message="first line\nsecond & third")
    for table in build(runs, Protocol(), results):
        table = table._replace(
            narrow=(),
            rows=[*table.rows, ["<0.001", "a_b^{c}%", "[-0.61, +0.33]", *table.rows[0][3:]]],
        )
        body = [line for line in latex(table).splitlines() if not line.startswith("%")]
        rows = [line for line in body if line.endswith(r" \\")]
        assert len(rows) == 1 + len(table.rows) and all(
            line.count(" & ") == len(table.header) - 1 for line in rows
        )
        assert body[0].startswith(r"\begin{tabular}{l") and body[-1] == r"\end{tabular}"
        assert not any(
            character in "\n".join(body) for character in "±–`"
        ) and "second" not in "\n".join(body)
        assert r"$<$0.001 & a\_b\textasciicircum \{c\}\% & [$-0.61$, $+0.33$]" in rows[-1]


def test_readme(results, runs):
    text = "a\n<!-- results:begin table2 -->\nold\n<!-- results:end -->\nb\n<!-- results:begin counts -->\n<!-- results:end -->\n"
    filled = fill_readme(text, readme_blocks(runs, results))
    assert "old" not in filled and "| ResNet-20+LCM2 |" in filled
    assert "| CIFAR-10 | cifar | fp32 | – | resnet20 | invented | 7 | 1 | 8 minutes |" in filled
    assert "| CIFAR-10 | cifar | fp32 | schedule.epochs=3 | resnet20 | invented | 1 | 0 |" in filled
    assert (
        filled.startswith("a\n<!-- results:begin table2 -->\n| Model")
        and "<!-- results:end -->\nb\n" in filled
    )
    assert fill_readme(filled, readme_blocks(runs, results)) == filled
    with pytest.raises(UserError, match="no result is called table9"):
        fill_readme(
            "<!-- results:begin table9 -->\n<!-- results:end -->", readme_blocks(runs, results)
        )
