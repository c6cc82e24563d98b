"""scripts/compare.py: runs of a protocol of one's own, and what it says where runs cannot be compared."""

import runpy

import pandas as pd
import pytest
from invented_runs import ROOT, edit, invented_run

from lcm.reporting.runs import collect
from lcm.reporting.statistics import bca_interval, sign_flip_p

main = runpy.run_path(str(ROOT / "scripts" / "compare.py"))["main"]
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


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_six_seeds_of_three_arms(runs, tmp_path, capsys):
    main([str(runs), "data=digits", "schedule.epochs=30", "--out", str(tmp_path / "mine")])
    text = capsys.readouterr().out
    assert text.startswith(
        "# Every attention against none: ResNet-20 on digits, schedule=digits, precision=fp32, schedule.epochs=30\n"
    )
    assert "> **Not the protocol of schedule=digits: schedule.epochs=30.**" in text
    assert "Holm's correction over the 2 comparisons of this table" in text and "Runs: 18" in text
    records = pd.read_csv(tmp_path / "mine.csv").set_index("attention")
    assert list(records.index) == ["none", "se", "mine"] and list(records["pairs"]) == [0, 6, 6]
    differences = [a - b for a, b in zip(TOP1["mine"], TOP1["none"], strict=True)]
    mine = records.loc["mine"]
    assert (mine["low"], mine["high"]) == pytest.approx(bca_interval(differences), abs=1e-4)
    assert mine["p"] == pytest.approx(sign_flip_p(differences), abs=1e-4) and mine["p_holm"] == 0.0625
    assert (
        mine["verdict"] == "inconclusive" and "can reach 0.05: 7." in text
    )  # six seeds are too few for two comparisons
    assert "ResNet-20: mine" in (tmp_path / "mine.svg").read_text() and (tmp_path / "mine.png").exists()
    assert (tmp_path / "mine.md").read_text() in text and "\\begin{table}" in (tmp_path / "mine.tex").read_text()


def test_one_comparison_of_six_seeds_can_decide(runs, capsys):
    main([str(runs), "attention=none,mine"])
    assert capsys.readouterr().out.splitlines()[7].endswith("| 0.031 | 0.031 | supported |")
    main([str(runs), "attention=none,mine", "--against", "mine"])
    text = capsys.readouterr().out
    assert "better than mine?" in text and text.splitlines()[7].endswith("| 0.031 | 0.031 | contradicted |")


def test_records_are_compared_like_runs(runs, tmp_path, capsys):
    main([str(runs)])
    text = capsys.readouterr().out
    collect(runs, tmp_path / "results")
    main([str(tmp_path / "results" / "metrics")])
    assert capsys.readouterr().out == text


def test_a_module_with_a_setting_of_its_own_is_named(runs, capsys):
    for directory in (runs / "digits" / "resnet20" / "mine").iterdir():
        edit(directory, config__attention__reduction=8, deviations={"schedule.epochs": 30, "attention.reduction": 8})
    main([str(runs)])
    assert "schedule=digits: schedule.epochs=30, mine: attention.reduction=8.**" in capsys.readouterr().out


def test_what_is_left_out_is_said(runs, capsys):
    invented_run(runs, attention="gc", state="running", **OWN)
    (invented_run(runs, attention="cbam", **OWN) / "run.json").unlink()
    invented_run(runs, attention="lcm1", state="failed", message="the loss is not finite", **OWN)
    main([str(runs)])
    text = capsys.readouterr().out
    assert "running" in text and "run.json is missing" in text and "(the loss is not finite)" in text


def test_runs_that_cannot_be_compared(runs, capsys):
    assert "no folder nowhere" in refused(capsys, "nowhere")
    assert "no finished run there has seed=7" in refused(capsys, runs, "seed=7")
    assert "no run has a setting schedule.epoch; nearest: schedule.epochs" in refused(capsys, runs, "schedule.epoch=3")
    assert "nothing to compare with gc: there are finished runs of none, se, mine" in refused(
        capsys, runs, "--against", "gc"
    )
    assert "nothing to compare with none" in refused(capsys, runs, "attention=none")
    assert "[ is not a value" in refused(capsys, runs, "seed=[")
    edit(next((runs / "digits" / "resnet20" / "se").glob("seed3-*")), config__attention__reduction=8)
    edit(next((runs / "digits" / "resnet20" / "se").glob("seed4-*")), config__attention__reduction=16)
    assert "se: attention.reduction: 8 (1 runs), 16 (1 runs)" in refused(capsys, runs)
    invented_run(runs, data="digits", schedule="digits", epochs=8)
    message = refused(capsys, runs)
    assert "19 runs cannot be compared" in message and "schedule.epochs: 30 (18 runs), 8 (1 runs)" in message
    assert "for example with schedule.epochs=30" in message and "Traceback" not in message
