"""Every committed result follows from recorded runs and the files that are measured, computed or
written by hand: results/ is regenerated from them, byte for byte. tests/paper/test_complexity.py
counts complexity.csv again.
"""

import re
import shutil

import matplotlib
import pytest
import tables
from invented_runs import RESULTS, ROOT

from lcm.reporting.report import write_report
from lcm.reporting.runs import collect

MADE = ("runs.csv", "table*", "comparison*", "claims*.md", "report.html", "figures", "unfinished")
FILLED = ("REPRODUCTION.md", "results/README.md")
TABLES = r"((table[1-5]|comparison|claims)[a-z0-9_-]*\.(md|csv|tex))|runs\.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of the checkout with all results regenerated from the records and the given files."""
    copy = tmp_path_factory.mktemp("again")
    folder = copy / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns(*MADE))
    shutil.copy(ROOT / "REPRODUCTION.md", copy)
    assert not collect(None, folder).damaged
    tables.main(["--results", str(folder), "--readme", *(str(copy / name) for name in FILLED)])
    write_report(folder)
    return copy


def files(folder, pattern):
    """{name: its bytes} of the files whose names match."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if re.fullmatch(pattern, f.name)}


def different(one, other):
    """The names of files that are not the same, or are in one of both alone."""
    return [name for name in {*one, *other} if one.get(name) != other.get(name)]


def test_runs_and_tables(made):
    committed, again = (files(folder / "results", TABLES) for folder in (ROOT, made))
    assert len(again) > 30 and different(committed, again) == [], "python scripts/tables.py"


def test_report_and_figures(made):
    committed, again = (
        files(folder / "results", "report.html") | files(folder / "results" / "figures", ".*")
        for folder in (ROOT, made)
    )
    assert set(committed) == set(again), "python scripts/report.py; remove figures of earlier pages"
    pages = [
        re.sub(rb"base64,[A-Za-z0-9+/=]*", b"", found["report.html"])
        for found in (committed, again)
    ]
    assert pages[0] == pages[1]
    versions = {
        v for text in committed.values() for v in re.findall(rb"Matplotlib v([\d.]+)", text)
    }
    if versions != {matplotlib.__version__.encode()}:
        pytest.skip(f"figures were drawn with matplotlib {versions}, not {matplotlib.__version__}")
    assert different(committed, again) == []


@pytest.mark.parametrize("file", FILLED)
def test_readme_blocks(file, made):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count("<!-- results:begin") == text.count("<!-- results:end -->") > 0
    assert (made / file).read_text(encoding="utf-8") == text, f"scripts/tables.py --readme {file}"


def test_results_readme_names_every_file():
    text = (RESULTS / "README.md").read_text()
    stems = {re.sub(r"\d$|-.*", "", file.stem) for file in RESULTS.iterdir()} - {"README"}
    assert [stem for stem in stems if stem not in text] == []
