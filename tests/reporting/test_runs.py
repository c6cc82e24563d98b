"""Runs become results: complete, sorted, stable; damaged and malicious ones named; nothing lost
when runs are added.
"""

import json
import subprocess
import sys
import time

import pandas as pd
import pytest
from invented_runs import ROOT, edit, invented_run, results_of

from lcm.data import folder
from lcm.errors import UserError
from lcm.reporting import records
from lcm.reporting.protocol import Protocol
from lcm.reporting.records import BEGUN, COLUMNS, find_runs, read_record, read_run
from lcm.reporting.report import make_report
from lcm.reporting.runs import collect, read_runs, rebuild
from lcm.reporting.tables import comparison_table


@pytest.fixture
def runs(tmp_path):
    for seed in range(2):
        for attention in ("none", "lcm2"):
            invented_run(tmp_path / "runs", attention=attention, seed=seed, top1=92 + seed)
    return tmp_path / "runs"


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_rows_say_what_the_runs_said(runs, tmp_path):
    summary = collect(runs, tmp_path / "results")
    table = read_runs(tmp_path / "results" / "runs.csv")
    pd.testing.assert_frame_equal(table, summary.runs, check_exact=True)
    found = [(r.attention, r.seed, r.test_top1) for r in table.itertuples()]
    assert found == [("lcm2", 0, 92.0), ("lcm2", 1, 93.0), ("none", 0, 92.0), ("none", 1, 93.0)]
    row = table.iloc[0]
    source = json.loads((runs / row.run / "run.json").read_text())
    facts = source | source["versions"] | source["result"] | {"deviations": "{}", "message": ""}
    for key in COLUMNS:
        assert pd.isna(row[key]) if key == "data_verified" else row[key] == facts[key], key


def test_columns_that_some_data_sets_have(tmp_path):
    assert records.IN_MEMORY == folder.IN_MEMORY
    settings = (
        {"verify": True},
        {"verify": False},
        {"image_size": 224, "cache_size": None},
        {"image_size": 224, "cache_size": 256},
        {"image_size": 32, "cache_size": 256},  # held in memory: no cache
    )
    for seed, changes in enumerate(settings):
        edit(
            invented_run(tmp_path / "runs", seed=seed),
            **{f"config__data__{key}": v for key, v in changes.items()},
        )
    collect(tmp_path / "runs", tmp_path / "results")
    table = read_runs(tmp_path / "results" / "runs.csv")
    assert [None if pd.isna(value) else value for value in table["data_verified"]] == [
        True,
        False,
        None,
        None,
        None,
    ]
    assert list(table["data_cache"]) == ["", "", "full size", "256", ""]


def test_every_environment_of_a_run_is_in_its_row(tmp_path):
    first = {
        "device": "cpu (A, 1 thread)",
        "commit": "a" * 40,
        "versions": {"torch": "2.6.0"},
        "dirty": False,
    }
    second = first | {"device": "cpu (A, 2 threads)", "versions": {"torch": "2.7.0"}, "dirty": True}
    invented_run(tmp_path / "runs", **first, continued=[second, first | {"commit": "b" * 40}])
    invented_run(tmp_path / "runs", attention="se", **first)
    continued, plain = collect(tmp_path / "runs", tmp_path / "results").runs.itertuples()
    assert (
        continued.device == "cpu (A, 1 thread), then cpu (A, 2 threads)"
        and continued.torch == "2.6.0, then 2.7.0"
    )
    assert continued.commit == f"{'a' * 40}, then {'b' * 40}" and continued.dirty
    assert (plain.device, plain.commit, plain.torch, plain.dirty) == (
        first["device"],
        "a" * 40,
        "2.6.0",
        False,
    )
    runs = read_runs(tmp_path / "results" / "runs.csv")
    notes = comparison_table(runs, Protocol(), ROOT / "results").notes
    assert (
        "1 in the commit (se); 1 in the version of torch (se); 1 in the device (se)." in notes[-1]
    )


def test_records_keep_every_epoch_and_no_machine(runs, tmp_path):
    collect(runs, tmp_path / "results")
    files = sorted((tmp_path / "results" / "metrics").iterdir())
    assert len(files) == 4
    run, epochs = read_record(files[0])
    source, source_epochs = read_run(runs / run["run"])
    assert epochs == source_epochs and epochs["epoch"] == [1, 2, 3]
    assert (
        run["config"]["schedule"] == source["config"]["schedule"]
        and run["result"] == source["result"]
    )
    text = files[0].read_text()
    assert not any(word in text for word in ("/home/", "somewhere", str(runs)))


def test_again_and_from_records_byte_for_byte(runs, tmp_path):
    collect(runs, tmp_path / "results")
    first = contents(tmp_path / "results")
    assert not collect(runs, tmp_path / "results").new
    assert contents(tmp_path / "results") == first
    rebuild(tmp_path / "results" / "metrics", tmp_path / "again")
    assert (tmp_path / "again" / "runs.csv").read_bytes() == first["runs.csv"]


def test_the_same_run_trained_again_replaces_and_says_so(runs, tmp_path):
    collect(runs, tmp_path / "results")
    invented_run(tmp_path / "mine", top1=91.0)
    summary = collect(tmp_path / "mine", tmp_path / "results")
    assert len(summary.runs) == 4 and "92.0 % before, 91.0 % now" in summary.replaced[0]
    assert "92.0 % before, 91.0 % now" in str(summary)
    invented_run(tmp_path / "failed", state="failed", message="loss is nan")
    summary = collect(
        tmp_path / "failed", tmp_path / "results"
    )  # a failure does not replace a result
    assert not summary.replaced and set(summary.runs["state"]) == {"finished"}


def test_failed_runs_are_results_and_unfinished_ones_are_not(runs, tmp_path):
    invented_run(runs, attention="gc", state="failed", message="the loss is not finite in epoch 3")
    invented_run(runs, attention="se", state="running")
    refused = invented_run(runs, attention="cbam", state="stopped")
    for name in (
        "run.json",
        "metrics.jsonl",
    ):  # as a run that was refused after its directory was made
        (refused / name).unlink()
    (refused / "log.txt").write_text("error: images missing")
    (runs / "seed-studies").mkdir()  # somebody's own folder
    summary = collect(runs, tmp_path / "results")
    failed = summary.runs[summary.runs["state"] == "failed"].iloc[0]
    assert failed.attention == "gc" and pd.isna(failed.test_top1) and "not finite" in str(summary)
    assert (
        summary.damaged == []
        and len(summary.unfinished) == 1
        and "running" in summary.unfinished[0]
    )
    assert not [run for run in find_runs(runs) if "cbam" in run.parts]
    assert [run for run in find_runs(runs, (*BEGUN, "log.txt")) if "cbam" in run.parts] == [
        refused
    ]  # for status.py


def lines(change):
    def damage(directory):
        file = directory / "metrics.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(True))))

    return damage


DAMAGE = {  # words of the message: how the run was damaged
    "run.json is missing": lambda d: (d / "run.json").unlink(),
    "metrics.jsonl is missing": lambda d: (d / "metrics.jsonl").unlink(),
    "run.json is not JSON": lambda d: (d / "run.json").write_text(
        (d / "run.json").read_text()[:100]
    ),
    "run.json is no JSON object": lambda d: (d / "run.json").write_text("[]"),
    "run.json cannot be read": lambda d: (d / "run.json").write_bytes(b"\xff\xfe"),
    "seed is": lambda d: edit(d, seed="zero"),
    "params is": lambda d: edit(d, params="1.2M"),
    "test_top1 is null": lambda d: edit(d, result=None),
    "test_loss is null": lambda d: edit(d, result__test_loss=float("nan")),
    "its own facts say": lambda d: edit(d, seed=7),
    "2 epochs of 3": lines(lambda found: found[:2]),
    "line 3 is not JSON": lines(lambda found: [*found[:2], found[2][:-40]]),
    "2 epochs of 3, or not in order": lines(lambda found: found[::2]),
    "is not the last line of metrics.jsonl": lambda d: edit(d, result__test_top1=99.0),
    "form that train.py writes": lambda d: edit(d, config="none"),
    "must be an iterable": lambda d: edit(d, continued=2),
    "'str' object": lambda d: edit(d, continued=["2.7.0"]),
    "expected str instance": lambda d: edit(d, continued=[{"versions": {"torch": 2}}]),
    'attention is ".."': lambda d: edit(d, attention="..", run=f"cifar10/resnet20/../{d.name}"),
    'data is "/etc"': lambda d: edit(d, data="/etc", run=f"/etc/resnet20/se/{d.name}"),
    'model is "<script>"': lambda d: edit(d, model="<script>", run=f"cifar10/<script>/se/{d.name}"),
    "schedule is": lambda d: edit(d, schedule="../../x"),
    "precision is": lambda d: edit(d, precision=r"\input{x}"),
    'attention is ["se"]': lambda d: edit(d, attention=["se"]),
    "device is": lambda d: edit(d, device="\ud800"),
    "commit is": lambda d: edit(d, commit="a\rb"),
    "line 1 is not JSON": lambda d: (d / "metrics.jsonl").write_text("[" * 200_000),
    "is not JSON (Exceeds": lambda d: (d / "run.json").write_text('{"seed": ' + "9" * 5000 + "}"),
    "a value is not a number": lines(
        lambda found: [line.replace('"lr": 0.1,', '"lr": 1e999,') for line in found]
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_or_malicious_run_is_named_and_stops_nothing(words, runs, tmp_path):
    directory = invented_run(runs, attention="se")
    DAMAGE[words](directory)
    summary = collect(runs, tmp_path / "results")
    (entry,) = summary.damaged
    assert entry.startswith(str(directory)) and entry in str(summary) and words in entry
    assert len(summary.runs) == 4
    written = [path.parent for path in tmp_path.rglob("*.jsonl") if "runs" not in path.parts]
    assert written == [tmp_path / "results" / "metrics"] * 4


def test_malicious_text_is_shown_as_text(tmp_path):
    results = results_of(
        tmp_path, [{"attention": "none"}, {"attention": "lcm1", "state": "failed"}]
    )
    message = "<img src=x onerror=alert(1)>\n\\input{x} | `x` \r\x1b[31m"
    for directory in (tmp_path / "runs").rglob("seed*"):
        edit(directory, message=message, device="<script>alert(1)</script>")
    collect(tmp_path / "runs", results)
    messages = read_runs(results / "runs.csv")["message"]
    assert messages.map(str.isprintable).all() and messages.str.contains("<img").all()
    page, _ = make_report(results)
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    command = [sys.executable, str(ROOT / "scripts" / "tables.py"), "--results", str(results)]
    subprocess.run(command, check=True, capture_output=True)
    latex, markdown = ((results / f"table2.{suffix}").read_text() for suffix in ("tex", "md"))
    assert (
        all(line.startswith("%") for line in latex.splitlines() if "input" in line)
        and "input" in latex
    )
    assert "<img" not in markdown and "&lt;img" in markdown


def test_a_damaged_record_is_named(runs, tmp_path):
    collect(runs, tmp_path / "results")
    one, other, *_ = sorted((tmp_path / "results" / "metrics").iterdir())
    one.write_text(one.read_text()[:-30])
    other.rename(other.with_name("other.jsonl"))
    summary = rebuild(tmp_path / "results" / "metrics", tmp_path / "again")
    assert len(summary.runs) == 2 and len(summary.damaged) == 2
    summary = collect(
        runs, tmp_path / "results"
    )  # the runs are still there, and both records come back
    assert (
        len(summary.runs) == 4
        and "damaged before, 92.0 % now" in summary.replaced[0]
        and len(summary.new) == 1
    )


def test_script(runs, tmp_path):
    (invented_run(runs, attention="se") / "run.json").unlink()
    script = [sys.executable, str(ROOT / "scripts" / "collect.py")]
    done = subprocess.run([*script, "runs"], cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.returncode == 0
        and "DAMAGED" in done.stdout
        and (tmp_path / "results" / "runs.csv").exists()
    )


def test_no_folder_and_no_results(tmp_path):
    assert read_runs(tmp_path / "runs.csv").empty
    for read in (collect, rebuild):
        with pytest.raises(UserError, match="no folder"):
            read(tmp_path / "runs", tmp_path)
    for text in (
        "a,b\n1,2\n",
        (ROOT / "results" / "runs.csv").read_text().replace(",10,", ",ten,"),
    ):
        (tmp_path / "runs.csv").write_text(text)
        with pytest.raises(UserError, match=r"runs\.csv is damaged"):
            read_runs(tmp_path / "runs.csv")


def test_a_thousand_runs(tmp_path):
    for seed in range(1000):
        invented_run(tmp_path / "runs", seed=seed, epochs=10)
    for _ in range(2):  # into an empty folder, and again
        start = time.process_time()
        assert len(collect(tmp_path / "runs", tmp_path / "results").runs) == 1000
        assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "modules, absent",
    [
        (
            ("records", "protocol"),
            ("pandas", "torch", "numpy"),
        ),  # train.py and status.py import these
        (
            [file.stem for file in sorted((ROOT / "lcm" / "reporting").glob("[a-z]*.py"))],
            ("torch",),
        ),
    ],
)
def test_imports_stay_small(modules, absent):
    code = (
        "".join(f"import lcm.reporting.{name}; " for name in modules)
        + f"import sys; print({set(absent)} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
