"""The tables: byte for byte from a small stored runs.csv, with no run at all, with one run and with three seeds."""

import csv
import runpy
import shutil
from pathlib import Path

import pytest

from lcm.errors import UserError
from lcm.reporting.collect import read_runs
from lcm.reporting.readme import fill_readme, readme_blocks, summary
from lcm.reporting.render import DASH, accuracy, latex, markdown, rounded, signed, write_tables
from lcm.reporting.selection import Protocol, protocols, select
from lcm.reporting.tables import TITLES, build, comparison_table

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).resolve().parent / "stored"
main = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    for file in (
        ROOT / "results" / "paper.csv",
        ROOT / "results" / "claims.yaml",
        STORED / "complexity.csv",
        STORED / "runs.csv",
    ):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def runs():
    return read_runs(STORED / "runs.csv")


def tables(runs, protocol, results):
    return {table.name: table for table in build(runs, protocol, results)}


def test_stored_tables_byte_for_byte(results):
    for _ in range(2):  # and again
        main(["--all", "--results", str(results)])
        expected = [file for file in STORED.iterdir() if file.name not in ("runs.csv", "complexity.csv")]
        assert len(expected) >= 10
        for file in expected:
            assert (results / file.name).read_bytes() == file.read_bytes(), file.name


def test_numbers_by_hand(results, runs):
    table = tables(runs, Protocol(), results)["table2"]
    cells = {(r["attention"], r["data"], r["model"]): r for r in table.records}
    lcm2 = cells["lcm2", "cifar10", "resnet20"]  # 92.50, 92.35, 92.71; the paper says 92.70
    assert lcm2["mean"] == pytest.approx(92.52) and lcm2["difference"] == pytest.approx(-0.18)
    assert lcm2["deviation"] == pytest.approx(((0.02**2 + 0.17**2 + 0.19**2) / 2) ** 0.5)
    assert (lcm2["n"], lcm2["seeds"]) == (3, "0 1 2")
    row = next(row for row in table.rows if row[0] == "ResNet-20+LCM2")
    assert row[6:9] == ["92.70", "92.52 ± 0.18 (3)", "-0.18"]


def test_one_run_has_no_deviation_and_a_missing_one_a_dash_and_a_command(results, runs):
    table = tables(runs, Protocol(), results)["table2"]
    row = next(row for row in table.rows if row[0] == "ResNet-20+LCM1")
    assert row[6:] == ["92.77", "92.77 ± – (1)", "0.00", "69.40", DASH, DASH]
    assert "python train.py experiment=table2 model=resnet20 attention=lcm1 data=cifar100" in table.missing
    assert not any("lcm1 data=cifar10\n" in f"{command}\n" and "resnet20" in command for command in table.missing)


def test_failed_and_deviating_runs_enter_no_mean(results, runs):
    lcm1 = [r for r in runs if (r.attention, r.data) == ("lcm1", "cifar10")]
    assert {r.state for r in lcm1} == {"finished", "failed"} and any(r.deviations for r in lcm1)
    assert sorted(select(runs, Protocol()).arm("cifar10", "resnet20", "lcm1")) == [0]
    assert "the loss is not finite in epoch 2" in markdown(tables(runs, Protocol(), results)["table2"])


def test_other_protocols_are_named_loudly(results, runs):
    assert protocols(runs) == [
        Protocol(), Protocol(None, "bf16"), Protocol("digits"), Protocol("short", "bf16")
    ]  # fmt: skip
    table = tables(runs, Protocol("short", "bf16"), results)["table2-short-bf16"]
    for text in (markdown(table), latex(table)):
        assert "NOT the paper's schedule" in text and "schedule=short, precision=bf16" in text
    assert all(command.endswith("schedule=short precision=bf16") for command in table.missing)
    assert "precision=bf16" in markdown(tables(runs, Protocol(None, "bf16"), results)["table2-bf16"])


def test_no_run_at_all(results):
    made = tables([], Protocol(), results)
    assert list(made) == [f"table{n}" for n in TITLES]
    rows = [row for table in made.values() for row in table.rows]
    assert len(rows) == 57
    for table in made.values():
        paper = [
            line for line in csv.DictReader((results / "paper.csv").open()) if f"table{line['table']}" == table.name
        ]
        assert [record["label"] for record in table.records] == [line["label"] for line in paper]  # the paper's order
        assert [record["paper"] for record in table.records] == [line["value"] for line in paper]
        assert len(table.missing) == len({(line["label"], line["data"]) for line in paper})
        assert all(row[7] == row[8] == DASH for row in table.rows)
    (quickstart,) = build([], Protocol("digits"), results)
    assert quickstart.name == "quickstart" and len(quickstart.missing) == 7
    assert build([], Protocol("short"), results) == []


def test_counts_missing_names_the_command(results, runs):
    (results / "complexity.csv").unlink()
    table = tables(runs, Protocol(), results)["table2"]
    assert "python scripts/complexity.py --csv results/complexity.csv" in markdown(table)
    assert table.rows[0][2] == table.rows[0][4] == table.rows[0][5] == DASH


def test_two_runs_of_one_seed_count_once(results, runs):
    none = next(r for r in runs if (r.attention, r.seed, r.data, r.schedule) == ("none", 0, "cifar10", "cifar"))
    compiled = none._replace(run=none.run + "x", compile=True, test_top1=50.0, start="2020-01-01T00:00:00+00:00")
    later = none._replace(run=none.run + "y", test_top1=50.0, start="2030-01-01T00:00:00+00:00")
    selection = select([compiled, later, *runs], Protocol())
    assert selection.arm("cifar10", "resnet20", "none")[0] == none and selection.doubles == [later, compiled]
    table = tables([compiled, later, *runs], Protocol(), results)["table2"]
    assert table.rows == tables(runs, Protocol(), results)["table2"].rows
    assert "A second run of the same seed, left out" in markdown(table)


def test_pairs_need_the_same_seed_and_the_same_files(runs):
    table = comparison_table(runs, Protocol())
    lcm2 = next(r for r in table.records if r["attention"] == "lcm2")
    assert lcm2["pairs"] == 3 and lcm2["difference"] == pytest.approx((0.40 - 0.05 + 0.66) / 3)
    other = [r._replace(data_fingerprint="other") if (r.attention, r.seed) == ("none", 1) else r for r in runs]
    table = comparison_table(other, Protocol())
    lcm2 = next(r for r in table.records if r["attention"] == "lcm2")
    assert lcm2["pairs"] == 2 and lcm2["difference"] == pytest.approx((0.40 + 0.66) / 2)
    assert "different files of cifar10" in markdown(table)


def test_what_a_reader_must_know_is_said(results, runs):
    lcm2 = [r for r in runs if r.attention == "lcm2" and r.precision == "fp32"]
    mixed = [r._replace(epochs=300, dirty=True) if r in lcm2[:1] else r for r in runs]
    text = markdown(tables(mixed, Protocol(), results)["table2"])
    assert "**The runs on cifar10 have different lengths**: 3, 300 epochs." in text
    assert "1 of them from a checkout with uncommitted changes." in text
    assert "compile=true" not in text and "verify" not in text
    compiled = [r._replace(compile=True) if r in lcm2 else r for r in runs]
    assert f"{len(lcm2)} of them with `compile=true`" in markdown(tables(compiled, Protocol(), results)["table2"])
    copies = [r._replace(data_verified=r not in lcm2) for r in runs]
    assert f"{len(lcm2)} of them with `data.verify=false`" in markdown(tables(copies, Protocol(), results)["table2"])
    assert "different" not in markdown(tables(runs, Protocol(), results)["table2"])


def test_a_module_of_ones_own_gets_a_row(runs):
    mine = [r._replace(attention="mine", run=f"{r.run}m") for r in runs if r.attention == "gc"]
    assert [row[2] for row in comparison_table([*runs, *mine], Protocol("digits")).rows][-1] == "mine"


@pytest.mark.parametrize(
    "number, places, text",
    [(23.1848, 3, "23.185"), (0.125, 2, "0.13"), (-0.125, 2, "-0.13"), (None, 2, DASH), (1, 0, "1")],
)
def test_rounded(number, places, text):
    assert rounded(number, places) == text


def test_signed_and_accuracy():
    assert [signed(x) for x in (0.594, -0.07, 0.0, -0.001, None)] == ["+0.59", "-0.07", "0.00", "0.00", DASH]
    assert accuracy([]) == DASH and accuracy([92.0]) == "92.00 ± – (1)" and accuracy([1.0, 3.0]) == "2.00 ± 1.41 (2)"


def test_latex_is_a_table_that_compiles_by_its_looks(results, runs):
    for table in build(runs, Protocol(), results):
        body = [line for line in latex(table).splitlines() if not line.startswith("%")]
        assert all(line.count(" & ") == len(table.header) - 1 for line in body if line.endswith(r"\\"))
        assert not any(character in "\n".join(body) for character in "±–`")
        assert "\n".join(body).count("{") == "\n".join(body).count("}")


def test_readme(results, runs, tmp_path):
    text = "a\n<!-- results:begin table2 -->\nold\n<!-- results:end -->\nb\n<!-- results:begin counts -->\n<!-- results:end -->\n"
    filled = fill_readme(text, readme_blocks(runs, results))
    assert (
        "old" not in filled
        and "| ResNet-20+LCM2 |" in filled
        and "| CIFAR-10 | cifar | fp32 | resnet20 | invented | 8 | 1 | 0.2 |" in filled
    )
    assert filled.startswith("a\n<!-- results:begin table2 -->\n| Model") and "<!-- results:end -->\nb\n" in filled
    assert fill_readme(filled, readme_blocks(runs, results)) == filled
    with pytest.raises(UserError, match="no result is called table9"):
        fill_readme("<!-- results:begin table9 -->\n<!-- results:end -->", readme_blocks(runs, results))


def test_summary(results, runs):
    text = summary(runs, results)
    assert "| CIFAR-10 | ResNet-20 | short | bf16 | 85.27 ± 0.22 (6) | +0.50 [+0.39, +0.61] | – |" in text
    assert (
        "| CIFAR-10 | ResNet-20 | cifar | fp32 | 92.18 ± 0.19 (3) | – | – | – | – | +0.67 (1 pair) | +0.34 [-0.05, +0.57] |"
        in text
    )
    assert "| digits | ResNet-20 | digits | fp32 | 98.13 ± 0.18 (2) | – | – | – | +0.38 (2 pairs) |" in text
    assert "21 comparative claims" in text and summary([], results).startswith("Nothing was run yet. 21 comparative")


def test_script_without_such_runs(results, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--schedule", "shrot", "--results", str(results)])
    assert end.value.code == 2 and "schedule=shrot" in capsys.readouterr().err


def test_without_the_papers_numbers(tmp_path):
    with pytest.raises(UserError, match=r"paper\.csv is missing"):
        build([], Protocol(), tmp_path)


def test_files(results, runs):
    files = write_tables(build(runs, Protocol(), results), results)
    assert {file.suffix for file in files} == {".md", ".csv", ".tex"} and all(file.exists() for file in files)
    for file in files:
        if file.suffix == ".csv":
            assert list(csv.DictReader(file.open(newline="")))
