"""Every committed result follows from recorded runs and the files that are measured, computed or
written by hand: results/ is regenerated from them, byte for byte. tests/paper/test_complexity.py
counts complexity.csv again.
"""

import json
import re
import shutil

import matplotlib
import pytest
import tables
from invented_runs import ROOT

from lcm.reporting.report import write_report
from lcm.reporting.runs import collect, read_runs

RESULTS = ROOT / "results"
# made by commands of their own: complexity.csv, power.csv, figure4.png; the others by hand
GIVEN = ("paper.csv", "claims.yaml", "complexity.csv", "power.csv", "benchmark.csv", "figure4.png")
FILLED = ("REPRODUCTION.md", "results/README.md")
TABLES = re.compile(r"(table[1-5]|comparison|claims)[a-z0-9_-]*\.(md|csv|tex)")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of the checkout with all results regenerated from the records and the given files."""
    copy = tmp_path_factory.mktemp("again")
    folder = copy / "results"
    for name in ("metrics", "plans"):
        shutil.copytree(RESULTS / name, folder / name)
    for name in (*(f"results/{given}" for given in GIVEN), *FILLED):
        shutil.copy(ROOT / name, copy / name)
    assert not collect(None, folder).damaged
    tables.main(["--results", str(folder), "--readme", *(str(copy / name) for name in FILLED)])
    write_report(folder)
    return copy


def test_runs_and_tables(made):
    assert (RESULTS / "runs.csv").read_bytes() == (made / "results" / "runs.csv").read_bytes()
    committed, again = (
        {f.name for f in folder.iterdir() if TABLES.fullmatch(f.name)}
        for folder in (RESULTS, made / "results")
    )
    assert committed == again, "python scripts/tables.py"
    for name in sorted(again):
        assert (RESULTS / name).read_bytes() == (made / "results" / name).read_bytes(), name


def test_report_and_figures(made):
    folders = RESULTS, made / "results"
    committed, again = ({f.name for f in (folder / "figures").iterdir()} for folder in folders)
    assert committed == again, "python scripts/report.py; remove figures that it has not drawn"
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in folders]
    without = [re.sub(r"base64,[A-Za-z0-9+/=]*", "", page) for page in pages]
    assert without[0] == without[1]
    figures = {name: (RESULTS / "figures" / name).read_text() for name in sorted(again)}
    drawn_with = {re.search(r"Matplotlib v([\d.]+)", text)[1] for text in figures.values()}
    if drawn_with != {matplotlib.__version__}:
        pytest.skip(
            f"figures were drawn with matplotlib {drawn_with}, this is {matplotlib.__version__}"
        )
    assert pages[0] == pages[1]
    for name, text in figures.items():
        assert text == (made / "results" / "figures" / name).read_text(), name


def test_figure4_shows_recorded_runs():
    runs = read_runs(RESULTS / "runs.csv")
    recorded = dict(zip(runs["run"], runs["config_hash"], strict=True))
    shown = json.loads((RESULTS / "figure4.json").read_text())["networks"]
    assert len(shown) >= 3 and all(
        recorded[network["run"]] == network["config_hash"] for network in shown
    )


@pytest.mark.parametrize("file", FILLED)
def test_readme_blocks(file, made):
    text = (ROOT / file).read_text(encoding="utf-8")
    begun = len(re.findall(r"<!-- results:begin \S+ -->", text))
    assert begun == text.count("<!-- results:end -->") > 0
    assert (made / file).read_text(encoding="utf-8") == text, f"scripts/tables.py --readme {file}"


def test_results_readme_names_every_file():
    text = (RESULTS / "README.md").read_text()
    for file in RESULTS.iterdir():
        stem = re.sub(r"\d$|-.*", "", file.stem)
        assert file.name == "README.md" or stem in text, file.name
