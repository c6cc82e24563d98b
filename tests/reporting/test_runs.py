"""Runs become results: complete, sorted, stable; damaged and malicious ones named; nothing lost
when runs are added.
"""

import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from collect import main
from invented_runs import DIVERGED, ROOT, edit, invented_run, results_of

from lcm.config.compose import flatten
from lcm.errors import UserError
from lcm.reporting.protocol import Protocol, select
from lcm.reporting.records import BEGUN, COLUMNS, STANDARD, find_runs, read_record, read_run
from lcm.reporting.render import latex, markdown
from lcm.reporting.report import make_report
from lcm.reporting.runs import collect, read_runs
from lcm.reporting.tables import build, comparison_table


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


def test_rows_and_records_say_what_the_runs_said(runs, tmp_path):
    summary = collect(runs, tmp_path / "results")
    table = read_runs(tmp_path / "results" / "runs.csv")
    pd.testing.assert_frame_equal(table, summary.runs, check_exact=True)
    assert list(table["attention"]) == ["lcm2", "lcm2", "none", "none"]
    row = table.iloc[0]
    source = json.loads((runs / row.run / "run.json").read_text())
    facts = source | source["versions"] | source["result"] | {"deviations": "{}", "message": ""}
    for key in COLUMNS:
        assert row[key] == (facts | {"data_verified": True})[key], key
    # records keep every epoch and no machine
    files = sorted((tmp_path / "results" / "metrics").iterdir())
    run, epochs = read_record(files[0])
    assert len(files) == 4 and epochs == read_run(runs / row.run)[1] and len(epochs["epoch"]) == 3
    assert run["config"]["schedule"] == source["config"]["schedule"]
    assert not any(word in files[0].read_text() for word in ("/home/", "somewhere", str(runs)))


def test_every_environment_of_a_run_is_in_its_row(tmp_path):
    first = {
        "device": "cpu (A, 1 thread)",
        "commit": "a" * 40,
        "versions": {"torch": "2.6.0"},
        "dirty": False,
    }
    second = first | {"device": "cpu (A, 2 threads)", "versions": {"torch": "2.7.0"}, "dirty": True}
    run = invented_run(tmp_path / "runs", **first, continued=[second, first | {"commit": "b" * 40}])
    edit(run, config__data__verify=False)
    invented_run(tmp_path / "runs", attention="se", **first)
    collect(tmp_path / "runs", tmp_path / "results")
    runs = read_runs(tmp_path / "results" / "runs.csv")
    keys = ["device", "torch", "commit", "dirty", "data_verified"]
    assert runs[keys].astype(object).where(runs[keys].notna(), None).to_numpy().tolist() == [
        [
            "cpu (A, 1 thread), then cpu (A, 2 threads)",
            "2.6.0, then 2.7.0",
            f"{'a' * 40}, then {'b' * 40}",
            True,
            False,
        ],
        ["cpu (A, 1 thread)", "2.6.0", "a" * 40, False, True],
    ]
    note = comparison_table(runs, Protocol(), ROOT / "results").notes[-1]
    assert "1 in the commit (se); 1 in the version of torch (se)" in note
    assert "1 in the device or its threads (se)." in note


def test_settings_of_rounding_are_named_where_they_are_not_those_of_the_files(tmp_path):
    _, other = (invented_run(tmp_path / "runs", model="densenet40", seed=seed) for seed in (0, 1))
    config = json.loads((other / "run.json").read_text())["config"]  # that of the files
    assert {key: flatten(config)[key] for key in STANDARD} == STANDARD
    edit(other, config__model__memory="linear")
    runs = collect(tmp_path / "runs", tmp_path / "results").runs
    assert list(runs["rounding"]) == ["", "model.memory=linear"]


def test_runs_of_a_file_that_was_edited_since_are_deviations(tmp_path):
    """Two seeds with another rate, and before the attention's file had its reduction."""
    for seed in range(4):
        directory = invented_run(tmp_path / "runs", attention="se", seed=seed)
        run = json.loads((directory / "run.json").read_text())
        if seed < 2:
            run["config"]["schedule"]["learning_rate"] = 0.2
            del run["config"]["attention"]["reduction"]
        (directory / "run.json").write_text(json.dumps(run))
    runs = collect(tmp_path / "runs", tmp_path / "results").runs
    changed = '{"attention.reduction":null,"schedule.learning_rate":0.2}'
    assert list(runs["deviations"]) == [changed, changed, "{}", "{}"]
    assert list(select(runs, Protocol())["seed"]) == [2, 3]


def test_again_and_from_records_byte_for_byte(runs, tmp_path, monkeypatch, capsys):
    collect(runs, tmp_path / "results")
    first = contents(tmp_path / "results")
    assert not collect(runs, tmp_path / "results").new
    assert contents(tmp_path / "results") == first
    # the command, in a folder without runs/
    monkeypatch.chdir(tmp_path / "results")
    (tmp_path / "results" / "runs.csv").unlink()
    main(["--results", "."])
    assert "4 runs: 4 finished, 0 failed; 0 new" in capsys.readouterr().out
    assert contents(tmp_path / "results") == first


def test_the_same_run_trained_again_replaces_and_says_so(runs, tmp_path):
    collect(runs, tmp_path / "results")
    invented_run(tmp_path / "mine", top1=91.0)
    before = contents(tmp_path / "results")
    summary = collect(tmp_path / "mine", tmp_path / "results")
    assert len(summary.runs) == 4 and "92.00 % recorded, 91.00 % now" in str(summary)
    assert summary.kept and not summary.replaced and contents(tmp_path / "results") == before
    summary = collect(tmp_path / "mine", tmp_path / "results", replace=True)
    assert len(summary.runs) == 4 and "92.00 % before, 91.00 % now" in str(summary)
    # a failure does not replace a result
    invented_run(tmp_path / "failed", state="failed", message="loss is nan")
    summary = collect(tmp_path / "failed", tmp_path / "results")
    assert not summary.replaced and set(summary.runs["state"]) == {"finished"}


def test_failed_runs_are_results_and_unfinished_ones_are_not(runs, tmp_path):
    invented_run(runs, attention="gc", state="failed", message=DIVERGED)
    invented_run(runs, attention="se", state="running")
    refused = invented_run(runs, attention="cbam", state="stopped")
    # as a run that was refused after its directory was made
    (refused / "run.json").unlink()
    (refused / "metrics.jsonl").rename(refused / "log.txt")
    summary = collect(runs, tmp_path / "results")
    (failed,) = summary.runs[summary.runs["state"] == "failed"].itertuples()
    assert failed.attention == "gc" and pd.isna(failed.test_top1) and DIVERGED in str(summary)
    (unfinished,) = summary.unfinished
    assert summary.damaged == [] and unfinished.endswith(": running")
    assert refused not in find_runs(runs)
    assert refused in find_runs(runs, (*BEGUN, "log.txt"))  # for status.py


def lines(directory, change):
    file = directory / "metrics.jsonl"
    file.write_text("".join(change(file.read_text().splitlines(True))))


DAMAGE = {  # words of the message: how the run was damaged
    "run.json is missing or damaged (FileNotFoundError": lambda d: (d / "run.json").unlink(),
    "metrics.jsonl is missing": lambda d: (d / "metrics.jsonl").unlink(),
    "damaged (JSONDecodeError": lambda d: (d / "run.json").write_text('{"state": "fini'),
    "damaged (AttributeError": lambda d: (d / "run.json").write_text("[]"),
    "damaged (UnicodeDecodeError": lambda d: (d / "run.json").write_bytes(b"\xff\xfe"),
    "seed is": lambda d: edit(d, seed="zero"),
    "params is": lambda d: edit(d, params="1.2M"),
    "test_top1 is null": lambda d: edit(d, result=None),
    "test_loss is null": lambda d: edit(d, result__test_loss=float("nan")),
    "its own facts say": lambda d: edit(d, seed=7),
    "2 epochs of 3": lambda d: lines(d, lambda found: found[:2]),
    "delimiter: line 3 column": lambda d: lines(d, lambda found: [*found[:2], found[2][:-40]]),
    "'list' object has no attribute 'get'": lambda d: lines(d, lambda found: [*found[:2], "[]"]),
    "2 epochs of 3, or not in order": lambda d: lines(d, lambda found: found[::2]),
    "is not the last line of metrics.jsonl": lambda d: edit(d, result__test_top1=99.0),
    "has no attribute 'items'": lambda d: edit(d, config="none"),
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
    "damaged (RecursionError": lambda d: (d / "metrics.jsonl").write_text("[" * 200_000),
    "damaged (ValueError: Exceeds": lambda d: (d / "run.json").write_text(
        f'{{"seed": {"9" * 5000}}}'
    ),
    "3 epochs of 9223372036854775807": lambda d: edit(d, epochs=2**63 - 1),
    "a value is not a number": lambda d: lines(
        d, lambda found: [line.replace('"lr": 0.1,', '"lr": 1e999,') for line in found]
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
    names = [{"attention": "none"}, {"attention": "lcm1", "state": "failed"}]
    results = results_of(tmp_path, names)
    message = "<img src=x onerror=alert(1)>\n\\input{x} | `x` \r\x1b[31m"
    for directory in (tmp_path / "runs").rglob("seed*"):
        edit(directory, message=message, device="<script>alert(1)</script>")
    collect(tmp_path / "runs", results, replace=True)
    runs = read_runs(results / "runs.csv")
    assert runs["message"].map(str.isprintable).all() and runs["message"].str.contains("<img").all()
    page, _ = make_report(results)
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    table = build(runs, Protocol(), results)[1]
    odd = [line for line in latex(table).splitlines() if "input" in line]
    assert odd and all(line.startswith("%") for line in odd)
    assert "<img" not in markdown(table) and "&lt;img" in markdown(table)


def test_a_damaged_record_is_named(runs, tmp_path):
    collect(runs, tmp_path / "results")
    one, other, *_ = sorted((tmp_path / "results" / "metrics").iterdir())
    one.write_text(one.read_text()[:-30])
    other.rename(other.with_name("other.jsonl"))
    summary = collect(None, tmp_path / "results")
    assert (len(summary.runs), len(summary.damaged)) == (2, 2)
    # the runs are still there, and both records come back
    summary = collect(runs, tmp_path / "results")
    assert (len(summary.runs), len(summary.new)) == (4, 1)
    assert "damaged before, 92.00 % now" in summary.replaced[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "a,b\n1,2\n",
        lambda text: text.replace(",10,", ",ten,"),
        lambda text: text.replace(",true,", ",yes,"),
        lambda text: text[:-200],
    ],
)
def test_a_damaged_table_of_runs_is_refused(damage, tmp_path):
    (tmp_path / "runs.csv").write_text(damage((ROOT / "results" / "runs.csv").read_text()))
    with pytest.raises(UserError, match=r"runs\.csv is damaged"):
        read_runs(tmp_path / "runs.csv")


def test_hundreds_of_runs(tmp_path):
    """Behind a link; others lead back, to it and above it."""
    for seed in range(300):
        invented_run(tmp_path / "disk", seed=seed, epochs=10)
    for name, target in (("above", tmp_path), ("back", tmp_path / "runs")):
        (tmp_path / "disk" / name).symlink_to(target)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    start = time.process_time()
    for _ in range(2):  # into an empty folder, and again
        assert len(collect(tmp_path / "runs", tmp_path / "results").runs) == 300
    assert time.process_time() - start < 20


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_a_folder_that_cannot_be_read_is_named_and_one_that_has_gone_is_not(
    runs, monkeypatch, error
):
    def refusing(folder):
        raise error(1, "Not here", folder)

    monkeypatch.setattr(os, "scandir", refusing)
    if error is FileNotFoundError:  # it was renamed a moment ago
        assert find_runs(runs) == []
    else:
        with pytest.raises(UserError, match=rf"cannot read {runs} \(Not here\)"):
            find_runs(runs)


REPORTING = [file.stem for file in sorted((ROOT / "lcm" / "reporting").glob("[a-z]*.py"))]


@pytest.mark.parametrize(
    "code, absent",
    [
        # train.py and status.py import these
        ("import lcm.reporting.records, lcm.reporting.protocol", ("pandas", "torch", "numpy")),
        ("; ".join(map("import lcm.reporting.{}".format, REPORTING)), ("torch",)),
        # a run on the digits
        (
            "import train; from lcm.data import Digits; digits = Digits().train(64, 0); "
            "digits.prepare(next(digits.iterate(1)), 'cpu'); "
            "train.build_network('resnet20', 'lcm2')",
            ("sklearn", "torchvision", "scipy", "pandas"),
        ),
    ],
)
def test_imports_stay_small(code, absent):
    code += f"; import sys; print({set(absent)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
