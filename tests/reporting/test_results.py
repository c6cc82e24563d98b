"""Every committed result follows from a recorded run: all files of results/ are made again from results/metrics alone.

Passes while nothing is committed yet, and fails as soon as a number stands in results/ or in the README without its run.
"""

import json
import re
import runpy
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lcm.reporting.collect import collect, read_record, read_records, read_runs, rebuild
from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.report import make_report, write_report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
GIVEN = ("paper.csv", "claims.yaml", "complexity.csv", "cost.csv", "benchmark.md")
TABLES = re.compile(r"(table[1-5]|comparison|quickstart|claims)[a-z0-9_-]*\.(md|csv|tex)")
FIGURES = re.compile(r"(curves|cost|claims|against-none)[a-z0-9_-]*\.(svg|png)")


def committed(pattern, folder):
    return {file.name for file in folder.iterdir() if pattern.fullmatch(file.name)} if folder.is_dir() else set()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """results/ made again from the records and the given files."""
    results = tmp_path_factory.mktemp("again")
    for name in GIVEN:
        if (RESULTS / name).exists():
            shutil.copy(RESULTS / name, results)
    if (RESULTS / "metrics").is_dir():
        shutil.copytree(RESULTS / "metrics", results / "metrics")
        summary = rebuild(results / "metrics", results)
        assert not summary.damaged
    runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"](["--all", "--results", str(results)])
    write_report(results)
    return results


def test_runs_csv(made):
    files = [results / "runs.csv" for results in (RESULTS, made)]
    assert files[0].exists() == files[1].exists()
    assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


def test_tables_and_claims(made):
    there = committed(TABLES, RESULTS)
    assert not there or there == committed(TABLES, made), "python scripts/tables.py --all"
    for name in sorted(there):
        assert (RESULTS / name).read_bytes() == (made / name).read_bytes(), name


def _matplotlib_of(text):
    found = re.search(r"Matplotlib v([\d.]+)", text)
    return found and found[1]


def test_report_and_figures(made):
    there = committed(FIGURES, RESULTS / "figures")
    if not (RESULTS / "report.html").exists():
        assert not there
        return
    assert there == committed(FIGURES, made / "figures"), "python scripts/report.py"
    pages = [(results / "report.html").read_text(encoding="utf-8") for results in (RESULTS, made)]
    without = [re.sub(r"base64,[A-Za-z0-9+/=]*", "", page) for page in pages]
    assert without[0] == without[1]
    drawn_with = {_matplotlib_of((RESULTS / "figures" / name).read_text()) for name in there if name.endswith("svg")}
    if drawn_with - {matplotlib.__version__}:
        pytest.skip(f"figures were drawn with matplotlib {drawn_with}, this is {matplotlib.__version__}")
    assert pages[0] == pages[1]
    for name in sorted(there):
        old, new = RESULTS / "figures" / name, made / "figures" / name
        if name.endswith("png"):  # compression differs between builds of Pillow; the picture must not
            assert np.array_equal(np.asarray(Image.open(old)), np.asarray(Image.open(new))), name
        else:
            assert old.read_bytes() == new.read_bytes(), name


def test_each_row_has_its_record_and_each_record_its_epochs():
    names = set()
    for file in sorted((RESULTS / "metrics").glob("*.jsonl")) if (RESULTS / "metrics").is_dir() else []:
        run, metrics = read_record(file)  # raises where the result is not its last epoch's
        assert run["state"] == "failed" or metrics
        names.add(run["run"])
    assert names == {run.run for run in read_runs(RESULTS / "runs.csv")}


def test_figure4_shows_recorded_runs():
    recorded = {run.run: run.config_hash for run in read_runs(RESULTS / "runs.csv") if run.state == "finished"}
    shown = json.loads((RESULTS / "figure4.json").read_text())["networks"]
    assert len(shown) >= 3 and all(recorded[network["run"]] == network["config_hash"] for network in shown)


@pytest.mark.parametrize("file", ["README.md", "REPRODUCTION.md", "results/README.md"])
def test_readme_tables(file, made):
    if not (ROOT / file).exists():
        pytest.skip(f"no {file}")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- results:begin \S+ -->", text)) == text.count("<!-- results:end -->")
    if not (RESULTS / "runs.csv").exists():  # nothing committed: nothing may stand there
        assert all(not part.strip() for part in re.findall(r"<!-- results:begin \S+ -->(.*?)<!--", text, re.DOTALL))
        return
    blocks = readme_blocks(read_runs(made / "runs.csv"), made)
    assert fill_readme(text, blocks) == text, f"python scripts/tables.py --all --readme {file}"


def test_power_page_is_there_only_from_its_command():
    page = RESULTS / "power.md"
    assert not page.exists() or "Made by `python scripts/power.py`" in page.read_text()


def test_this_test_sees_a_changed_number(tmp_path, monkeypatch):
    """A table with one figure altered by hand, and a row without its record, are found."""
    from invented_runs import simulated_run

    for seed in range(2):
        simulated_run(tmp_path / "runs", attention="none", seed=seed)
    results = tmp_path / "results"
    results.mkdir()
    for name in GIVEN:
        if (RESULTS / name).exists():
            shutil.copy(RESULTS / name, results)
    collect(tmp_path / "runs", results)
    runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"](["--all", "--results", str(results)])
    again = tmp_path / "again"
    shutil.copytree(results, again)
    monkeypatch.setitem(globals(), "RESULTS", results)
    test_tables_and_claims(again)
    table = results / "table2.md"
    assert "92.00 ± 0.00 (2)" in table.read_text()
    table.write_text(table.read_text().replace("92.00 ± 0.00 (2)", "93.00 ± 0.00 (2)"))
    with pytest.raises(AssertionError, match=r"table2\.md"):
        test_tables_and_claims(again)
    next((results / "metrics").iterdir()).unlink()
    with pytest.raises(AssertionError):
        test_each_row_has_its_record_and_each_record_its_epochs()
    assert len(read_records(results / "metrics")[0]) == 1
    page, _ = make_report(again)
    assert "92.00 ± 0.00 (2)" in page
