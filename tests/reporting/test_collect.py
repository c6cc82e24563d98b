"""Runs become results: whole, sorted, stable; damaged ones named; nothing lost when runs are added."""

import ast
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from invented_runs import simulated_run

from lcm.errors import UserError
from lcm.reporting.collect import collect, read_record, read_run, read_runs, rebuild

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path):
    for seed in range(2):
        for attention in ("none", "lcm2"):
            simulated_run(tmp_path / "runs", attention=attention, seed=seed, top1=92 + seed)
    return tmp_path / "runs"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_say_what_the_runs_said(runs, tmp_path):
    summary = collect(runs, tmp_path / "results")
    rows = read_runs(tmp_path / "results" / "runs.csv")
    assert rows == sorted(summary.rows, key=lambda r: (r.attention, r.seed))
    assert [(r.attention, r.seed, r.test_top1) for r in rows] == [
        ("lcm2", 0, 92.0), ("lcm2", 1, 93.0), ("none", 0, 92.0), ("none", 1, 93.0)
    ]  # fmt: skip
    source = json.loads((runs / rows[0].run / "run.json").read_text())
    for key in (
        "state",
        "precision",
        "compile",
        "deviations",
        "params",
        "macs",
        "seconds",
        "commit",
        "dirty",
        "start",
        "end",
    ):
        assert getattr(rows[0], key) == source[key]
    for key in ("test_top5", "best_test_top1", "best_epoch", "train_loss", "train_top1", "test_loss"):
        assert getattr(rows[0], key) == source["result"][key]
    assert (rows[0].torch, rows[0].python, rows[0].message) == ("2.6.0", "3.11.2", None)


def test_a_row_says_whether_the_images_were_verified(tmp_path):
    for seed, verify in enumerate((True, False, None)):  # None: as of the digits, which have no such key
        state = simulated_run(tmp_path / "runs", seed=seed) / "run.json"
        run = json.loads(state.read_text())
        run["config"]["data"] |= {} if verify is None else {"verify": verify}
        state.write_text(json.dumps(run))
    collect(tmp_path / "runs", tmp_path / "results")
    assert [row.data_verified for row in read_runs(tmp_path / "results" / "runs.csv")] == [True, False, None]


def test_records_keep_every_epoch_and_no_machine(runs, tmp_path):
    collect(runs, tmp_path / "results")
    files = sorted((tmp_path / "results" / "metrics").iterdir())
    assert len(files) == 4
    run, metrics = read_record(files[0])
    source, source_metrics = read_run(runs / run["run"])
    assert metrics == source_metrics
    assert run["config"]["schedule"] == source["config"]["schedule"] and run["result"] == source["result"]
    assert b"/home/" not in files[0].read_bytes() and b"somewhere" not in files[0].read_bytes()
    assert str(runs).encode() not in files[0].read_bytes()


def test_again_and_from_records_byte_for_byte(runs, tmp_path):
    collect(runs, tmp_path / "results")
    first = contents(tmp_path / "results")
    assert not collect(runs, tmp_path / "results").new
    assert contents(tmp_path / "results") == first
    rebuild(tmp_path / "results" / "metrics", tmp_path / "again")
    assert (tmp_path / "again" / "runs.csv").read_bytes() == first["runs.csv"]


def test_one_more_seed_adds_a_row_and_loses_none(runs, tmp_path):
    collect(runs, tmp_path / "results")
    before = (tmp_path / "results" / "runs.csv").read_text().splitlines()
    simulated_run(tmp_path / "mine", attention="se", seed=5, top1=91.5)
    summary = collect(tmp_path / "mine", tmp_path / "results")
    after = (tmp_path / "results" / "runs.csv").read_text().splitlines()
    assert len(summary.new) == 1 and not summary.replaced
    assert len(after) == len(before) + 1 and set(before) < set(after)


def test_the_same_run_trained_again_replaces_and_says_so(runs, tmp_path):
    collect(runs, tmp_path / "results")
    simulated_run(tmp_path / "mine", attention="none", seed=0, top1=91.0)
    summary = collect(tmp_path / "mine", tmp_path / "results")
    assert len(summary.rows) == 4 and "92.0 % before, 91.0 % now" in summary.replaced[0]
    assert "92.0 % before, 91.0 % now" in str(summary)
    shutil.rmtree(tmp_path / "mine")
    simulated_run(tmp_path / "mine", attention="none", seed=0, top1=91.0, state="failed", message="loss is nan")
    assert not collect(tmp_path / "mine", tmp_path / "results").replaced  # a failure does not replace a result


def test_failed_runs_are_results_unfinished_ones_are_not(runs, tmp_path):
    simulated_run(runs, attention="gc", state="failed", message="the loss is not finite in epoch 3")
    simulated_run(runs, attention="se", state="running")
    simulated_run(runs, attention="cbam", state="stopped")
    summary = collect(runs, tmp_path / "results")
    (failed,) = [r for r in read_runs(tmp_path / "results" / "runs.csv") if r.state == "failed"]
    assert failed.attention == "gc" and failed.test_top1 is None and "not finite" in failed.message
    assert len(summary.unfinished) == 2 and "se" in summary.unfinished[1] and "running" in summary.unfinished[1]
    assert "not finite" in str(summary)


def _edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


DAMAGE = {
    "run.json is missing": lambda d: (d / "run.json").unlink(),
    "metrics.jsonl is missing": lambda d: (d / "metrics.jsonl").unlink(),
    "run.json is not JSON": lambda d: (d / "run.json").write_text((d / "run.json").read_text()[:100]),
    "run.json is not a JSON object": lambda d: (d / "run.json").write_text("[]"),
    "cannot be read": lambda d: (d / "run.json").write_bytes(b"\xff\xfe"),
    "seed is": lambda d: _edit(d / "run.json", lambda r: r.update(seed="zero")),
    "without a result": lambda d: _edit(d / "run.json", lambda r: r.update(result=None)),
    "result.test_top1 is null": lambda d: _edit(d / "run.json", lambda r: r["result"].update(test_top1=float("nan"))),
    "not a percentage": lambda d: _edit(d / "run.json", lambda r: r["result"].update(test_top5=150.0)),
    "its own facts say": lambda d: _edit(d / "run.json", lambda r: r.update(seed=7)),
    "2 epochs of 3": lambda d: (d / "metrics.jsonl").write_text(
        "".join((d / "metrics.jsonl").read_text().splitlines(True)[:2])
    ),
    "line 3 is not JSON": lambda d: (d / "metrics.jsonl").write_text((d / "metrics.jsonl").read_text()[:-40]),
    "line 2 is epoch": lambda d: (d / "metrics.jsonl").write_text(
        "".join((d / "metrics.jsonl").read_text().splitlines(True)[::2])
    ),
    "the last line of metrics.jsonl": lambda d: _edit(d / "run.json", lambda r: r["result"].update(test_top1=99.0)),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_run_is_named_and_stops_nothing(words, runs, tmp_path):
    directory = simulated_run(runs, attention="se")
    DAMAGE[words](directory)
    summary = collect(runs, tmp_path / "results")
    assert len(summary.rows) == 4
    (entry,) = summary.damaged
    assert entry.startswith(str(directory)) and words in entry and entry in str(summary)


def test_a_copy_is_not_counted_twice(runs, tmp_path):
    one = next(runs.glob("*/*/none/seed0-*"))
    shutil.copytree(one, runs / "cifar10" / "resnet20" / "none" / "seed0-copy")
    summary = collect(runs, tmp_path / "results")
    assert len(summary.rows) == 4 and "a second copy" in summary.damaged[0]


def test_a_damaged_record_is_named(runs, tmp_path):
    collect(runs, tmp_path / "results")
    one, other, *_ = sorted((tmp_path / "results" / "metrics").iterdir())
    one.write_text(one.read_text()[:-30])
    other.rename(other.with_name("other.jsonl"))
    summary = rebuild(tmp_path / "results" / "metrics", tmp_path / "again")
    assert len(summary.rows) == 2 and len(summary.damaged) == 2


def test_script(runs, tmp_path):
    (simulated_run(runs, attention="se") / "run.json").unlink()
    script = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / "collect.py")]
    done = subprocess.run([*script, "runs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "DAMAGED" in done.stdout and (tmp_path / "results" / "runs.csv").exists()
    assert "lcm.reporting.collect" in done.stderr
    assert not {"torch", "numpy", "pandas"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    missing = subprocess.run([*script, "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2 and "no folder nowhere" in missing.stderr and "Traceback" not in missing.stderr


def test_no_folder_and_no_results(tmp_path):
    assert read_runs(tmp_path / "runs.csv") == []
    with pytest.raises(UserError, match="no folder"):
        collect(tmp_path / "runs", tmp_path)
    with pytest.raises(UserError, match="no folder"):
        rebuild(tmp_path / "metrics", tmp_path)
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"runs\.csv is damaged"):
        read_runs(tmp_path / "runs.csv")


def test_a_thousand_runs(tmp_path):
    for seed in range(1000):
        simulated_run(tmp_path / "runs", seed=seed, epochs=10)
    for _ in range(2):  # into an empty folder, and again
        start = time.process_time()
        assert len(collect(tmp_path / "runs", tmp_path / "results").rows) == 1000
        assert time.process_time() - start < 5  # measured: 0.8 and 1.0 s


def test_reporting_imports_nothing_of_training():
    """Whoever has only results/ needs no torch: reporting imports itself, errors, files, and the (torch-free) configs."""
    allowed = ("lcm.errors", "lcm.files", "lcm.config.identity", "lcm.config.options")
    for file in (ROOT / "lcm" / "reporting").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("torch"), file
                assert not name.startswith("lcm") or name in allowed or name.startswith("lcm.reporting"), file
