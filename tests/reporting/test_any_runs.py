"""scripts/compare.py: runs of one's own protocol, and what it says of those it cannot compare."""

import itertools
import re

import pandas as pd
import pytest
from compare import main
from invented_runs import DIVERGED, edit, invented_run

from lcm.reporting.any_runs import choose
from lcm.reporting.records import read_run_directories
from lcm.reporting.runs import collect
from lcm.reporting.statistics import bca_interval, sign_flip_p

OWN = {"data": "digits", "schedule": "digits", "epochs": 30, "deviations": {"schedule.epochs": 30}}
TOP1 = {
    "none": [98.0, 98.5, 97.75, 98.25, 98.0, 98.5],
    "se": [98.25, 98.5, 98.25, 98.0, 98.5, 98.75],
    "mine": [98.75, 99.5, 98.5, 99.0, 98.5, 99.25],
}


@pytest.fixture
def runs(tmp_path):
    """Six seeds of three arms on the digits with schedule.epochs=30."""
    for attention, points in TOP1.items():
        for seed, top1 in enumerate(points):
            invented_run(tmp_path / "runs", attention=attention, seed=seed, top1=top1, **OWN)
    return tmp_path / "runs"


def said(capsys, *arguments):
    """What the command prints."""
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The message of arguments that are refused."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def line_of(text, attention):
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [attention]]
    return line.split()


@pytest.mark.parametrize(
    ("out", "holds"),
    [
        ("a.b.pdf", b"%PDF"),
        ("a.b.png", b"\x89PNG"),
        ("a.b.svg", b"ResNet-20 on birds: se"),
        ("a.b.md", b"# Every attention against none"),
    ],
)
def test_the_picture_has_the_format_of_the_names_ending_and_names_each_data_set(
    tmp_path, capsys, out, holds
):
    for data, attention in itertools.product(("pets", "birds"), ("none", "se")):
        run = invented_run(tmp_path / "runs", data=data, attention=attention, schedule="digits")
        edit(run, config__data__name="folder")  # as with data.label=pets
    by = ("--by", "data")  # both are data=folder; their labels tell them apart
    text = said(capsys, tmp_path / "runs", *by, "--out", tmp_path / "new" / out)
    assert holds in (tmp_path / "new" / out).read_bytes()
    assert re.findall(r"^ *(birds|pets) +se ", text, re.MULTILINE) == ["birds", "pets"]
    assert (tmp_path / "new" / "a.b.md").exists()


def test_six_seeds_of_three_arms(runs, tmp_path, capsys):
    text = said(capsys, runs, "data=digits", "schedule.epochs=30", "--out", tmp_path / "mine")
    title = (
        "Every attention against none: ResNet-20 on digits, schedule=digits, precision=fp32, "
        "schedule.epochs=30\n"
    )
    assert text.startswith(title) and (tmp_path / "mine.md").read_text().startswith(f"# {title}")
    for words in (
        "Not the protocol of schedule=digits: schedule.epochs=30.",
        "better than none?",
        "Runs: 18",
        "inconclusive (6 of 7 pairs)",
        "p (Holm): over the 2 comparisons chosen here.",
    ):
        assert words in text
    records = pd.read_csv(tmp_path / "mine.csv").set_index("attention")
    assert list(records.index) == ["none", "se", "mine"] and list(records["pairs"]) == [0, 6, 6]
    differences = [a - b for a, b in zip(TOP1["mine"], TOP1["none"], strict=True)]
    expected = [*bca_interval(differences), sign_flip_p(differences), 0.0625]
    mine = records.loc["mine"]
    assert list(mine[["low", "high", "p", "p_holm"]]) == pytest.approx(expected, abs=1e-4)
    assert "ResNet-20: mine" in (tmp_path / "mine.svg").read_text()
    latex = (tmp_path / "mine.tex").read_text()
    assert "\n\\begin{tabular}{lrrrr}\n" in latex
    assert r"Attention & Test top-1 (\%) & minus none & 95 \% interval & p (Holm) \\" in latex
    # records are compared like runs
    text = said(capsys, runs)
    collect(runs, tmp_path / "results")
    assert said(capsys, tmp_path / "results" / "metrics") == text
    assert said(capsys, runs, tmp_path / "results" / "metrics") == text  # each run once


def test_a_failed_copy_of_a_run_that_was_continued_to_its_end_is_no_other_run(tmp_path, capsys):
    for seed in range(6):
        for attention in ("none", "mine"):
            invented_run(tmp_path / "runs", attention=attention, seed=seed, **OWN)
    failed = {"state": "failed", "message": DIVERGED, "attention": "mine", **OWN}
    invented_run(tmp_path / "copy", **failed)
    folders = [tmp_path / "runs", tmp_path / "copy"]
    texts = [said(capsys, *order) for order in (folders, folders[::-1])]
    assert texts[0] == texts[1] == said(capsys, folders[0])


@pytest.mark.parametrize(
    "against, other, word", [("none", "mine", "supported"), ("mine", "none", "contradicted")]
)
def test_one_comparison_of_six_seeds_can_decide(runs, capsys, against, other, word):
    text = said(capsys, runs, "attention=none,mine", "--against", against)
    assert f"better than {against}?" in text
    assert line_of(text, other)[-3:] == ["0.031", "0.031", word]


def test_settings_of_an_attention_are_arms_and_what_is_left_out_is_said(runs, capsys):
    for seed in range(6):
        deviations = OWN["deviations"] | {"attention.reduction": 8}
        invented_run(runs, attention="se", seed=seed, **OWN | {"deviations": deviations})
    invented_run(runs, attention="gc", state="running", **OWN)
    (invented_run(runs, attention="cbam", **OWN) / "run.json").unlink()
    invented_run(runs, attention="lcm1", state="failed", message=DIVERGED, **OWN)
    text = said(capsys, runs)
    for words in (
        "schedule=digits: schedule.epochs=30; in some runs attention.reduction=8.",
        "Runs: 24",
        "se reduction=8",
        "se reduction=4",
        ": running",
        "run.json is missing",
        f"({DIVERGED})",
    ):
        assert words in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["seed=7"], "no finished run there has seed=7"),
        (["schedule.epoch=3"], "no run has a key schedule.epoch; nearest: schedule.epochs"),
        (["--by", "schedule.epoch"], "no run has a key schedule.epoch; nearest: schedule.epochs"),
        (["--by", "attention.size"], "no run has a key attention.size"),
        (["--against", "gc"], "no arm gc of ResNet-20 on digits: --against one of none, se, mine"),
        (["attention=none"], "nothing to compare"),
        (["seed=["], "[[] is not a value"),
        (["nowhere"], "no folder nowhere"),
    ],
)
def test_arguments_that_say_nothing(runs, capsys, arguments, words):
    assert words in refused(capsys, runs, *arguments)


def test_runs_that_cannot_be_compared(runs, capsys):
    # a key that came later than a run has the value that the run was trained with
    assert choose([{"config": {}, "data": "digits"}], ["schedule.decay=steps"])
    invented_run(runs, data="digits", schedule="digits", epochs=8, precision="bf16")
    error = refused(capsys, runs)
    assert "schedule.epochs: 30, 8" in error and "precision: bf16, fp32" in error
    assert "for example: precision=fp32 schedule.epochs=30\n" in error
    invented_run(runs, data="cifar10", epochs=8)
    error = refused(capsys, runs)
    assert "data.name: cifar10, digits" in error and "--by data --by schedule\n" in error
    assert "for example: data=cifar10 schedule=cifar\n" in error
    invented_run(runs, data="cifar100", schedule="short", seed=5)
    (example,) = re.findall("for example: (.*)\n", refused(capsys, runs))
    assert choose([run for run, _ in read_run_directories(runs)[0]], example.split())
    said(capsys, runs, "data=digits", "schedule.epochs=30")


def test_by_a_key_has_rows_for_each_value_and_one_family(tmp_path, capsys):
    """With the larger of two learning rates an attention is half a point better."""
    runs = tmp_path / "runs"
    for attention in ("none", "se", "mine"):
        for seed in range(8):
            for rate, gain in ((0.1, 0.5 * (attention != "none")), (0.05, 0)):
                changes = {"deviations": {"schedule.epochs": 30, "schedule.learning_rate": rate}}
                names = {"attention": attention, "seed": seed, "top1": 97 + 0.125 * seed + gain}
                invented_run(runs, **names, **OWN | changes)
    by = ("--by", "schedule.learning_rate")
    assert " ".join(by) in refused(capsys, runs)
    text = said(capsys, runs, *by, "--out", tmp_path / "by")
    assert "precision=fp32, schedule.epochs=30\n" in text  # what all rows have in common
    assert "; in some runs schedule.learning_rate=" in text and "over the 4 comparisons" in text
    records = pd.read_csv(tmp_path / "by.csv")
    assert list(records["schedule.learning_rate"]) == [0.05] * 3 + [0.1] * 3
    assert list(records["attention"]) == ["none", "se", "mine"] * 2
    best = records.iloc[-1]
    assert best["p_holm"] == pytest.approx(4 * 2 / 2**8, abs=1e-4)
    assert (best["verdict"], best["difference"]) == ("supported", 0.5)
    labels = re.findall("learning_rate=(.*?) mine", (tmp_path / "by.svg").read_text())
    assert set(labels) == {"0.05", "0.1"}
    assert "over the 2 comparisons" in said(capsys, runs, *by, "schedule.learning_rate=0.1")


def test_by_the_data_set_and_by_an_attentions_setting(tmp_path, capsys):
    for data, schedule in (("digits", "digits"), ("cifar10", "cifar")):
        for reduction in (None, 8, 16):
            attention = "se" if reduction else "none"
            deviations = {"attention.reduction": reduction} if reduction else {}
            facts = {"data": data, "schedule": schedule, "deviations": deviations}
            invented_run(tmp_path / "runs", attention=attention, **facts)
    by = ("--by", "data", "--by", "attention.reduction", "--by", "attention")
    text = said(capsys, tmp_path / "runs", *by)
    assert re.findall(r"(\S+) +se reduction=16", text) == ["CIFAR-10", "digits"]
    assert "ResNet-20 on CIFAR-10, ResNet-20 on digits" in text


def test_rows_have_the_schedule_and_precision_of_their_own_runs(tmp_path, capsys):
    arms = itertools.product(("none", "se"), ("cifar", "short"), ("bf16", "fp32"))
    for attention, schedule, precision in arms:
        facts = {"schedule": schedule, "precision": precision, "attention": attention}
        run = invented_run(tmp_path / "runs", **facts)
        shares = [0.5] if schedule == "short" else [0.5, 0.75]
        edit(run, config__precision=precision, config__schedule__divide_at=shares)
    by = ("--by", "schedule", "--by", "precision", "--by", "schedule.divide_at")
    text = said(capsys, tmp_path / "runs", *by, "--out", tmp_path / "by")
    assert "Not the paper's schedule: schedule=short." in text
    assert "schedule=cifar, schedule=short, precision=bf16, precision=fp32" in text
    records = pd.read_csv(tmp_path / "by.csv")
    names = [("cifar", "bf16"), ("cifar", "fp32"), ("short", "bf16"), ("short", "fp32")]
    assert sorted(zip(records["schedule"], records["precision"], strict=True)) == sorted(2 * names)
    shares = records["schedule.divide_at"][records["schedule"] == "short"]
    assert set(shares) == {"[0.5]"}


@pytest.mark.parametrize(
    "message, verdict, wins, n",
    [
        (DIVERGED, "inconclusive", "0.80", "(8 of 10)"),
        ("OSError: disk is full", "supported", "1.00", "(8)"),  # a crash is no loss
    ],
)
def test_diverged_seeds_are_in_the_cell_and_in_the_verdict(
    message, verdict, wins, n, tmp_path, capsys
):
    """Ten seeds five points better, two of them fail."""
    runs = tmp_path / "runs"
    for seed in range(10):
        invented_run(runs, seed=seed, top1=90 + 0.125 * seed, **OWN)
        changes = {"state": "failed", "message": message} if seed < 2 else {}
        invented_run(runs, attention="mine", seed=seed, top1=95 + 0.125 * seed, **OWN | changes)
    text = said(capsys, runs)
    line = line_of(text, "mine")
    assert (line[-4], line[-1]) == (wins, verdict) and n in " ".join(line) and message in text
    assert line_of(said(capsys, runs, "seed=2,3,4,5,6,7,8,9"), "mine")[-1] == "supported"
