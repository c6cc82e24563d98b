"""scripts/compare.py: runs of a protocol of one's own, and what it says where runs cannot be
compared.
"""

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


@pytest.mark.parametrize(("out", "begins"), [("a.b.pdf", b"%PDF"), ("a.b.png", b"\x89PNG")])
def test_the_picture_has_the_format_of_the_names_ending(tmp_path, out, begins):
    for attention in ("none", "se"):
        run = invented_run(tmp_path / "runs", data="pets", attention=attention, schedule="digits")
        edit(run, config__data__name="folder")  # as with data.label=pets
    main([str(tmp_path / "runs"), "data=pets", "--out", str(tmp_path / "new" / out)])
    assert (tmp_path / "new" / out).read_bytes().startswith(begins)
    assert (tmp_path / "new" / "a.b.md").exists()


def test_six_seeds_of_three_arms(runs, tmp_path, capsys):
    main([str(runs), "data=digits", "schedule.epochs=30", "--out", str(tmp_path / "mine")])
    text = capsys.readouterr().out
    title = (
        "Every attention against none: ResNet-20 on digits, schedule=digits, precision=fp32, "
        "schedule.epochs=30\n"
    )
    assert text.startswith(title) and (tmp_path / "mine.md").read_text().startswith(f"# {title}")
    assert "Not the protocol of schedule=digits: schedule.epochs=30." in text
    assert "better than none?" in text and "Runs: 18" in text
    records = pd.read_csv(tmp_path / "mine.csv").set_index("attention")
    assert list(records.index) == ["none", "se", "mine"] and list(records["pairs"]) == [0, 6, 6]
    differences = [a - b for a, b in zip(TOP1["mine"], TOP1["none"], strict=True)]
    mine = records.loc["mine"]
    assert (mine["low"], mine["high"]) == pytest.approx(bca_interval(differences), abs=1e-4)
    assert (
        mine["p"] == pytest.approx(sign_flip_p(differences), abs=1e-4) and mine["p_holm"] == 0.0625
    )
    assert mine["verdict"] == "inconclusive" and "inconclusive (6 of 7 pairs)" in text
    assert "p (Holm): over the 2 comparisons that were chosen here." in text
    assert "ResNet-20: mine" in (tmp_path / "mine.svg").read_text()
    lines = [line for line in (tmp_path / "mine.tex").read_text().splitlines() if line[0] != "%"]
    assert lines[0] == r"\begin{tabular}{lrrrr}" and max(map(len, lines)) < 90
    assert lines[2] == r"Attention & Test top-1 (\%) & minus none & 95 \% interval & p (Holm) \\"


def line_of(text, attention):
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [attention]]
    return line.split()


def test_one_comparison_of_six_seeds_can_decide(runs, capsys):
    main([str(runs), "attention=none,mine"])
    assert line_of(capsys.readouterr().out, "mine")[-3:] == ["0.031", "0.031", "supported"]
    main([str(runs), "attention=none,mine", "--against", "mine"])
    text = capsys.readouterr().out
    assert "better than mine?" in text and line_of(text, "none")[-3:] == [
        "0.031",
        "0.031",
        "contradicted",
    ]


def test_records_are_compared_like_runs(runs, tmp_path, capsys):
    main([str(runs)])
    text = capsys.readouterr().out
    collect(runs, tmp_path / "results")
    main([str(tmp_path / "results" / "metrics")])
    assert capsys.readouterr().out == text


def test_settings_of_an_attention_are_arms_of_their_own(runs, capsys):
    for seed in range(6):
        deviations = OWN["deviations"] | {"attention.reduction": 8}
        run = invented_run(runs, attention="se", seed=seed, **OWN | {"deviations": deviations})
        edit(run, config__attention__reduction=8)
    main([str(runs)])
    text = capsys.readouterr().out
    assert (
        "schedule=digits: schedule.epochs=30, attention.reduction=8." in text and "Runs: 24" in text
    )
    assert "se reduction=8" in text and "se reduction=None" in text


def test_what_is_left_out_is_said(runs, capsys):
    invented_run(runs, attention="gc", state="running", **OWN)
    (invented_run(runs, attention="cbam", **OWN) / "run.json").unlink()
    invented_run(runs, attention="lcm1", state="failed", message="the loss is not finite", **OWN)
    main([str(runs)])
    text = capsys.readouterr().out
    assert (
        ": running" in text and "run.json is missing" in text and "(the loss is not finite)" in text
    )


def test_runs_that_cannot_be_compared(runs, capsys):
    assert "no folder nowhere" in refused(capsys, "nowhere")
    assert "no finished run there has seed=7" in refused(capsys, runs, "seed=7")
    assert "no run has a key schedule.epoch; nearest: schedule.epochs" in refused(
        capsys, runs, "schedule.epoch=3"
    )
    assert "no arm gc among these runs: --against one of none, se, mine" in refused(
        capsys, runs, "--against", "gc"
    )
    assert "nothing to compare" in refused(capsys, runs, "attention=none")
    assert "[ is not a value" in refused(capsys, runs, "seed=[")
    invented_run(runs, data="digits", schedule="digits", epochs=8)
    error = refused(capsys, runs)
    assert (
        "schedule.epochs: 30, 8" in error
        and "for example: schedule.epochs=30" in error
        and "Traceback" not in error
    )
    invented_run(runs, data="cifar10", epochs=8)
    error = refused(capsys, runs)
    assert (
        "data.name: cifar10, digits" in error
        and "for example: data=cifar10 schedule=cifar\n" in error
        and "--by data --by schedule\n" in error
    )
    main([str(runs), "data=digits", "schedule.epochs=30"])


def rates(folder, attention, seeds=6, gain=0.0):
    """Runs of an attention with two learning rates; with the larger one it is `gain` better."""
    for seed in range(seeds):
        for rate in (0.1, 0.05):
            top1 = 97 + 0.125 * seed + gain * (rate == 0.1) * (attention != "none")
            changes = {"schedule.epochs": 30, "schedule.learning_rate": rate}
            run = invented_run(
                folder, attention=attention, seed=seed, top1=top1, **OWN | {"deviations": changes}
            )
            edit(run, config__schedule__learning_rate=rate)


def test_by_a_key_has_rows_for_each_value_and_one_family(tmp_path, capsys):
    for attention in ("none", "se", "mine"):
        rates(tmp_path / "runs", attention, seeds=8, gain=0.5)
    runs = str(tmp_path / "runs")
    assert "--by schedule.learning_rate" in refused(capsys, runs)
    main([runs, "--by", "schedule.learning_rate", "--out", str(tmp_path / "by")])
    text = capsys.readouterr().out
    assert "p (Holm): over the 4 comparisons that were chosen here." in text
    records = pd.read_csv(tmp_path / "by.csv")
    assert list(records["schedule.learning_rate"]) == [0.05] * 3 + [0.1] * 3
    assert list(records["attention"]) == ["none", "se", "mine"] * 2
    best = records[(records["attention"] == "mine") & (records["schedule.learning_rate"] == 0.1)]
    assert best["p_holm"].item() == pytest.approx(4 * 2 / 2**8, abs=1e-4)
    assert best["verdict"].item() == "supported" and best["difference"].item() == 0.5
    picture = (tmp_path / "by.svg").read_text()
    assert "learning_rate=0.05 mine" in picture and "learning_rate=0.1 mine" in picture
    main([runs, "--by", "schedule.learning_rate", "schedule.learning_rate=0.1"])
    assert "over the 2 comparisons" in capsys.readouterr().out
    error = refused(capsys, runs, "--by", "schedule.learning_rat")
    assert "no run has a key schedule.learning_rat; nearest: schedule.learning_rate" in error


def test_by_the_data_set_and_by_an_attentions_setting(tmp_path, capsys):
    for data, epochs in (("digits", 8), ("cifar10", 3)):
        for attention in ("none", "se"):
            for seed in range(2):
                schedule = "digits" if data == "digits" else "cifar"
                facts = {"attention": attention, "seed": seed, "schedule": schedule}
                run = invented_run(tmp_path / "runs", data=data, epochs=epochs, **facts)
                if attention == "se":
                    edit(run, config__attention__reduction=16)
    main([str(tmp_path / "runs"), "--by", "data", "--by", "attention.reduction"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:1] for line in lines if "reduction=16" in line] == [["cifar10"], ["digits"]]
    assert "ResNet-20 on digits" in " ".join(" ".join(line) for line in lines)


@pytest.mark.parametrize(
    "message, verdict, wins, n",
    [
        ("the loss stopped being a finite number in epoch 2", "inconclusive", "0.80", "(8 of 10)"),
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
    main([str(runs)])
    text = capsys.readouterr().out
    line = line_of(text, "mine")
    assert (line[-4], line[-1]) == (wins, verdict) and n in " ".join(line) and message in text
    main([str(runs), "seed=2,3,4,5,6,7,8,9"])
    assert line_of(capsys.readouterr().out, "mine")[-1] == "supported"
