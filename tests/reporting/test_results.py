"""Every committed result follows from recorded runs and the files that are measured, computed or written by hand: results/ is
regenerated from them, byte for byte. tests/paper/test_complexity.py counts complexity.csv again.
"""

import json
import re
import runpy
import shutil

import matplotlib
import numpy as np
import pytest
from invented_runs import ROOT, results_of
from PIL import Image

from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.records import read_record
from lcm.reporting.report import write_report
from lcm.reporting.runs import read_runs, rebuild

RESULTS = ROOT / "results"
# measured: cost.csv, benchmark.csv; computed by a command of its own: complexity.csv; the others by hand
GIVEN = ("paper.csv", "claims.yaml", "complexity.csv", "cost.csv", "benchmark.csv")
TABLES = re.compile(r"(table[1-5]|comparison|quickstart|claims|benchmark)[a-z0-9_-]*\.(md|csv|tex)")
FIGURES = re.compile(r"(curves|cost|claims|against-none)[a-z0-9_-]*\.(svg|png)")
tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"]


def names(pattern, folder):
    return {file.name for file in folder.iterdir() if pattern.fullmatch(file.name)}


def regenerate(given, folder):
    """`folder` with all results from the records and the given files of the folder `given`."""
    folder.mkdir()
    for name in GIVEN:
        if (given / name).exists():
            shutil.copy(given / name, folder)
    shutil.copytree(given / "metrics", folder / "metrics")
    assert not rebuild(folder / "metrics", folder).damaged
    tables(["--all", "--results", str(folder)])
    write_report(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("again") / "results"
    regenerate(RESULTS, folder)
    return folder


def check_runs_and_tables(committed, made):
    assert (committed / "runs.csv").read_bytes() == (made / "runs.csv").read_bytes()
    assert names(TABLES, committed) == names(TABLES, made), "python scripts/tables.py --all"
    for name in sorted(names(TABLES, made)):
        assert (committed / name).read_bytes() == (made / name).read_bytes(), name


def check_report(committed, made):
    there = names(FIGURES, committed / "figures")
    assert there == names(FIGURES, made / "figures"), "python scripts/report.py"
    pages = [(results / "report.html").read_text(encoding="utf-8") for results in (committed, made)]
    without = [re.sub(r"base64,[A-Za-z0-9+/=]*", "", page) for page in pages]
    assert without[0] == without[1]
    svgs = [(committed / "figures" / name).read_text() for name in there if name.endswith("svg")]
    drawn_with = {re.search(r"Matplotlib v([\d.]+)", text)[1] for text in svgs}
    if drawn_with != {matplotlib.__version__}:
        pytest.skip(f"figures were drawn with matplotlib {drawn_with}, this is {matplotlib.__version__}")
    assert pages[0] == pages[1]
    for name in sorted(there):
        old, new = committed / "figures" / name, made / "figures" / name
        if name.endswith("png"):  # compression differs between builds of Pillow; the picture must not
            assert np.array_equal(np.asarray(Image.open(old)), np.asarray(Image.open(new))), name
        else:
            assert old.read_bytes() == new.read_bytes(), name


def check_records(committed):
    recorded = {read_record(file)[0]["run"] for file in (committed / "metrics").glob("*.jsonl")}  # raises where damaged
    assert recorded == set(read_runs(committed / "runs.csv")["run"])


def test_runs_and_tables(made):
    check_runs_and_tables(RESULTS, made)


def test_report_and_figures(made):
    check_report(RESULTS, made)


def test_each_row_has_its_record():
    check_records(RESULTS)


def test_figure4_shows_recorded_runs():
    runs = read_runs(RESULTS / "runs.csv")
    recorded = dict(zip(runs["run"], runs["config_hash"], strict=True))
    shown = json.loads((RESULTS / "figure4.json").read_text())["networks"]
    assert len(shown) >= 3 and all(recorded[network["run"]] == network["config_hash"] for network in shown)


@pytest.mark.parametrize("file", ["README.md", "REPRODUCTION.md", "results/README.md", "docs/sweeps.md"])
def test_readme_blocks(file, made):
    text = (ROOT / file).read_text(encoding="utf-8")
    begun = len(re.findall(r"<!-- results:begin \S+ -->", text))
    assert begun == text.count("<!-- results:end -->") > 0
    assert fill_readme(text, readme_blocks(read_runs(made / "runs.csv"), made)) == text, (
        f"scripts/tables.py --all --readme {file}"
    )


def test_results_readme_names_every_file():
    text = (RESULTS / "README.md").read_text()
    for file in RESULTS.iterdir():
        stem = re.sub(r"\d$|-.*", "", file.stem)
        assert file.name == "README.md" or stem in text, file.name
    assert "Made by `python scripts/power.py`" in (RESULTS / "power.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda results: (results / "table2.md").write_text(
            (results / "table2.md").read_text().replace("92.00 ±", "93.00 ±")
        ),
        lambda results: (results / "runs.csv").write_text((results / "runs.csv").read_text().replace("92.0,", "93.0,")),
        lambda results: (results / "table2.tex").unlink(),
        lambda results: (results / "report.html").write_text(
            (results / "report.html").read_text().replace("92.00", "93.00")
        ),
        lambda results: (results / "figures" / "curves-cifar10-resnet20.svg").unlink(),
        lambda results: next((results / "metrics").iterdir()).unlink(),
    ],
    ids=["a number in a table", "a number of a run", "no table", "a number in the report", "no figure", "no record"],
)
def test_these_tests_see_a_change(change, tmp_path):
    given = results_of(tmp_path, [{"seed": 0}, {"seed": 1}])
    committed, made = tmp_path / "committed", tmp_path / "made"
    for folder in (committed, made):
        regenerate(given, folder)
    checks = (
        lambda: check_runs_and_tables(committed, made),
        lambda: check_report(committed, made),
        lambda: check_records(committed),
    )
    for check in checks:
        check()
    change(committed)
    with pytest.raises((AssertionError, OSError)):
        for check in checks:
            check()
