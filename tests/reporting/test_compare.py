"""scripts/compare.py on invented runs: one group compared, several refused with what tells them apart."""

import csv
import runpy
from pathlib import Path

import pytest
from invented_runs import simulated_run

main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "compare.py"))["main"]
GAIN = {"none": 0.0, "lcm2": 1.0, "mine": 0.0}
NOISE = (0.1, -0.2, 0.05, 0.2, -0.1, 0.15)


@pytest.fixture
def runs(tmp_path):
    """Six seeds of three arms, one of them unknown to the paper, trained for 30 epochs instead of the protocol's."""
    for seed in range(6):
        for place, (attention, gain) in enumerate(GAIN.items()):
            top1 = round(90 + gain + NOISE[(seed + 2 * place) % 6], 2)
            deviations = {"schedule.epochs": 30}
            simulated_run(tmp_path / "runs", "digits", attention=attention, seed=seed, top1=top1, epochs=30,
                          schedule="digits", deviations=deviations)  # fmt: skip
    return tmp_path / "runs"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert end.value.code == 2
    return capsys.readouterr().err


def test_three_arms(runs, tmp_path, capsys):
    main([str(runs), "data=digits", "schedule.epochs=30", "--out", "mine", "--results", str(tmp_path)])
    told = capsys.readouterr().out
    assert told.startswith("ResNet-20 on digits: schedule=digits, precision=fp32")
    assert "deviations from the protocol: schedule.epochs=30" in told
    assert "Pairs needed before a corrected p-value can reach 0.05: 7 (2 comparisons); there are 6." in told
    assert (tmp_path / "mine.md").exists() and (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "mine.csv", newline="") as stream:
        rows = {line["attention"]: line for line in csv.DictReader(stream)}
    assert list(rows) == ["none", "lcm2", "mine"] and rows["none"]["difference"] == ""
    assert float(rows["lcm2"]["difference"]) == pytest.approx(1.0) and rows["lcm2"]["pairs"] == "6"
    assert (rows["lcm2"]["p"], rows["lcm2"]["p_holm"], rows["lcm2"]["verdict"]) == ("0.0312", "0.0625", "inconclusive")


def test_another_reference_and_fewer_arms(runs, capsys):
    main([str(runs), "attention=mine,lcm2", "--against", "mine"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("lcm2")]
    assert "supported" in line and "+1.00" in line  # one comparison: six pairs can decide


def test_sizes_of_an_attention_are_arms_of_their_own(tmp_path, capsys):
    for reduction in (4, 8):
        simulated_run(tmp_path, attention="se", config={"attention.reduction": reduction})
    simulated_run(tmp_path)
    main([str(tmp_path)])
    told = capsys.readouterr().out
    assert "se reduction=4" in told and "se reduction=8" in told


def test_runs_that_cannot_be_compared(runs, capsys):
    simulated_run(runs, "digits", attention="none", seed=0, epochs=3, schedule="digits")
    error = refused(capsys, runs)
    assert "schedule.epochs: 3, 30" in error and "for example: schedule.epochs=3" in error
    simulated_run(runs, "cifar10", attention="none", seed=0)
    error = refused(capsys, runs)
    assert "data.name: cifar10, digits" in error and "data=cifar10 schedule=cifar" in error
    main([str(runs), "data=digits", "schedule.epochs=30"])


def test_clear_messages(runs, tmp_path, capsys):
    assert "no run has a key schedule.epoch; nearest: schedule.epochs" in refused(capsys, runs, "schedule.epoch=3")
    assert "no finished run has it" in refused(capsys, runs, "schedule.epochs=31")
    assert "no arm se among these runs: --against one of lcm2, mine, none" in refused(capsys, runs, "--against", "se")
    assert "nothing to compare" in refused(capsys, runs, "attention=none")
    assert "no folder" in refused(capsys, tmp_path / "nowhere")
    simulated_run(tmp_path / "other", state="failed")
    assert "no finished runs" in refused(capsys, tmp_path / "other")
