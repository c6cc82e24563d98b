"""Run folders from anybody, a colleague's archive for example: nothing is written elsewhere, nothing runs in a reader's browser."""

import json
import shutil
from pathlib import Path

import pytest
from invented_runs import simulated_run

from lcm.reporting.collect import collect, find_runs, read_runs
from lcm.reporting.render import write_tables
from lcm.reporting.report import write_report
from lcm.reporting.selection import Protocol
from lcm.reporting.tables import build

RESULTS = Path(__file__).resolve().parents[2] / "results"
SCRIPT = "<script>alert(1)</script>"
REFUSED = {
    "data": "../../elsewhere",
    "model": "a/b",
    "attention": '"><img src=x onerror=alert(1)>',
    "schedule": "..",
    "precision": "fp32/../../x",
    "config_hash": "../../../../x",
    "params": "1.2M",
    "seed": "0/../../x",
}
SHOWN = {"device": SCRIPT, "commit": f'"{SCRIPT}'}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """A folder with ten malicious runs and an ordinary one, collected; (folder, Summary)."""
    folder = tmp_path_factory.mktemp("untrusted")
    simulated_run(folder / "runs", seed=99)
    for seed, (key, value) in enumerate((REFUSED | SHOWN).items()):
        file = simulated_run(folder / "runs", attention="lcm2", seed=seed) / "run.json"
        run = json.loads(file.read_text()) | {key: value}
        run["run"] = f"{run['data']}/{run['model']}/{run['attention']}/seed{run['seed']}-{run['config_hash'][:8]}"
        file.write_text(json.dumps(run))
    failed = simulated_run(
        folder / "runs", attention="se", state="failed", message=f"{SCRIPT}\n\\input{{x}}", schedule="cifar"
    )
    assert failed.is_dir()
    results = folder / "results"
    results.mkdir()
    for name in ("paper.csv", "claims.yaml", "complexity.csv"):
        shutil.copy(RESULTS / name, results)
    return folder, collect(folder / "runs", results)


def test_what_becomes_a_name_is_refused(outcome):
    _, summary = outcome
    assert len(summary.damaged) == len(REFUSED)
    for key in REFUSED:
        assert any(f"run.json: {key} is " in line for line in summary.damaged), key
    assert len(summary.rows) == 1 + len(SHOWN) + 1


def test_pages_show_markup_as_text_and_nothing_is_written_elsewhere(outcome):
    folder, _ = outcome
    results = folder / "results"
    write_tables(build(read_runs(results / "runs.csv"), Protocol(), results), results)
    write_report(results)
    page = (results / "report.html").read_text()
    assert SCRIPT not in page and "&lt;script&gt;" in page
    assert {path.name for path in folder.iterdir()} == {"runs", "results"}
    assert not [line for line in (results / "table2.tex").read_text().splitlines() if line.startswith("\\input")]


def test_a_run_that_never_began_is_not_damaged(tmp_path):
    (tmp_path / "digits" / "resnet20" / "lcm2" / "seed0-12345678").mkdir(parents=True)
    (tmp_path / "digits" / "resnet20" / "lcm2" / "seed1-12345678").mkdir()
    (tmp_path / "digits/resnet20/lcm2/seed1-12345678/log.txt").write_text("error: precision=bf16: not here\n")
    (tmp_path / "seedlings").mkdir()
    assert find_runs(tmp_path) == []
    assert collect(tmp_path, tmp_path / "results").damaged == []
