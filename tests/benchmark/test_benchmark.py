"""The benchmark: what it counts, throws away and writes, and that both sides do the work they are timed for."""

import csv
import math
import os
import subprocess
import sys
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from benchmark import other_load, parts, project, reference, sides, startup, worker
from benchmark.__main__ import main
from benchmark.sides import Rounds, Side, take_turns
from benchmark.startup import ROOT
from benchmark.table import Table, larger, slower, summarise
from benchmark.worker import Spec, Worker
from tiny import ATTENTIONS


def options(**changes):
    usual = {"gpu": False, "device": "cpu", "threads": 1, "seconds": 0.01, "loaders": 0, "steps": 2}
    return SimpleNamespace(
        **usual | {"networks": ["resnet20"], "rounds": 2, "minutes": math.inf} | changes
    )


def report(images=100, wall=1.0, cpu=1.5, peak_mb=500.0):
    return {"images": images, "wall": wall, "cpu": cpu, "cpu_of_turn": cpu, "peak_mb": peak_mb}


class FakeSide:
    """A side whose every turn gives the same report; `order` has the turns of all sides."""

    order = []  # noqa: RUF012

    def __init__(self, variant, base=None, refused=None):
        self.variant, self.base, self.refused, self.spec = variant, base or self, refused, Spec()
        self.running = False

    def start(self):
        self.running = self.refused is None
        return self.running

    def turn(self):
        assert self.running
        self.order.append(self.variant)
        return report()

    def stop(self):
        self.running = False


@pytest.fixture
def load(monkeypatch):
    """Sets how many processors others keep busy in each turn, the one of the reports left out."""

    def busy(turns):
        turns = iter(turns)
        fake = lambda start, children: next(turns) + children - report()["cpu_of_turn"]  # noqa: E731
        monkeypatch.setattr(other_load, "others", fake)

    return busy


@pytest.mark.parametrize("stay", [True, False])
def test_disturbed_rounds_are_thrown_away_and_repeated(load, stay):
    load([0.0, 0.0, 0.0, 0.3, 0.05, 0.09])  # two turns a round: the second round is disturbed
    both = [FakeSide("reference"), FakeSide("fp32")]
    FakeSide.order.clear()
    rounds = take_turns("", both, options(), stay)
    assert FakeSide.order == [
        "reference",
        "fp32",
        "fp32",
        "reference",
        "reference",
        "fp32",
    ]  # each begins in its turn
    assert (len(rounds.reports), rounds.undisturbed, rounds.disturbed) == (2, 2, 1)
    assert not any(side.running for side in both)


def test_without_an_undisturbed_round_the_figures_are_marked(load):
    load([0.5] * 20)
    rounds = take_turns("", [FakeSide("reference"), FakeSide("fp32")], options())
    assert (len(rounds.reports), rounds.undisturbed, rounds.disturbed) == (
        4,
        0,
        4,
    )  # twice as many as asked for
    for row in summarise(rounds, "step"):
        assert (row["rounds"], row["disturbed"], row["remark"]) == (0, 4, "disturbed")


def test_no_round_begins_after_the_deadline(load):
    load([0.0] * 20)
    assert take_turns("", [FakeSide("fp32")], options(rounds=9, minutes=0)).undisturbed == 1


def test_what_a_machine_cannot_do_becomes_a_row(load):
    load([0.0] * 20)
    why = "precision=bf16: this processor has neither avx512_bf16 nor amx_bf16"
    three = [
        FakeSide("reference"),
        FakeSide("bf16", refused=why),
        FakeSide("x", refused="failed: X\nmore"),
    ]
    rows = summarise(take_turns("", three, options()), "step")
    assert [row["remark"] for row in rows] == ["", "not on this processor", "failed: X"]
    assert "ratio" not in rows[1]
    assert summarise(take_turns("", three[1:2], options()), "step") == rows[1:2]


def rows_of_three_rounds():
    plain = FakeSide("reference")
    fp32, bf16 = (
        FakeSide("fp32", base=plain),
        FakeSide("bf16", base=plain, refused="precision=bf16: no"),
    )
    reports = [
        {plain: report(100, 1.0), fp32: report(150, 1.0, peak_mb=400.0)},
        {
            plain: report(50, 1.0),
            fp32: report(100, 1.0, peak_mb=450.0),
        },  # a slow round: both are slow
        {plain: report(110, 1.0), fp32: report(176, 1.0, peak_mb=425.0)},
    ]
    return Rounds([plain, fp32, bf16], reports, 3, 1)


def test_medians_and_ratios_within_rounds():
    _, fp32, _ = summarise(rows_of_three_rounds(), "step")
    assert fp32["images_per_second"] == 150
    assert fp32["cpu_seconds_per_image"] == pytest.approx(1.5 / 150)
    assert fp32["peak_mb"] == 450
    assert (fp32["ratio"], fp32["low"], fp32["high"]) == pytest.approx(
        (1.6, 1.5, 2.0)
    )  # not the ratio of the medians
    assert summarise(rows_of_three_rounds(), "step", slower)[1]["ratio"] == pytest.approx(1 / 1.6)
    assert summarise(rows_of_three_rounds(), "step", larger)[1]["ratio"] == pytest.approx(0.85)


def test_the_file(tmp_path, capsys):
    file = tmp_path / "b.csv"
    table = Table(file, machine="X", torch="2.9", threads=2)
    table.common["date"] = "2026-11-24"
    table.add("step", summarise(rows_of_three_rounds(), "step"))
    assert file.read_text().splitlines() == [
        "date,machine,torch,threads,part,network,attention,what,variant,images_per_second,cpu_seconds_per_image,peak_mb,"
        "ratio,low,high,rounds,disturbed,remark",
        "2026-11-24,X,2.9,2,step,resnet20,none,step,reference,100,0.015,500,1,1,1,3,1,",
        "2026-11-24,X,2.9,2,step,resnet20,none,step,fp32,150,0.01,450,1.6,1.5,2,3,1,",
        "2026-11-24,X,2.9,2,step,resnet20,none,step,bf16,,,,,,,,,not on this processor",
    ]
    assert "1.6" in capsys.readouterr().out


def test_rows_measured_anew_replace_those_of_their_part_and_network_alone(tmp_path):
    file = tmp_path / "b.csv"
    groups_of = {
        "old": ["step a x", "step a y", "step b x", "epoch a x"],
        "new": ["step a x", "step a z"],
    }
    for name, groups in groups_of.items():
        table = Table(file, machine=name)
        for part, network, variant in map(str.split, groups):
            table.add(part, [{"network": network, "variant": variant}])
    rows = list(csv.DictReader(file.read_text().splitlines()))
    found = [
        " ".join(row[key] for key in ("part", "network", "variant", "machine")) for row in rows
    ]
    assert found == ["step b x old", "step a x new", "step a z new", "epoch a x old"]


def test_both_sides_train_the_same_network_by_the_same_rule():
    spec = Spec(batch=16)
    plain, train = reference.training(spec)
    bound = project.training(spec)
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    images, labels = reference.batch_at_hand(spec)
    for _ in range(2):  # the second has a momentum
        train(images, labels)
        bound.step(images, labels)
    for start, ours, theirs in zip(
        before, bound.step.network.parameters(), plain.parameters(), strict=True
    ):
        moved = (theirs - start).norm()
        assert (
            ours - theirs
        ).norm() < 0.2 * moved  # rounding changes signs at single ReLUs; without momentum: 0.4


@pytest.mark.parametrize("precision, tf32", [("fp32", False), ("tf32", True), ("bf16", False)])
@pytest.mark.parametrize("side", ["reference", "project"])
def test_both_sides_have_the_same_tf32(side, precision, tf32, monkeypatch):
    monkeypatch.setattr(project, "step", reference.step)  # as on a GPU, where tf32 is not refused
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = not tf32
    Worker(Spec(side, precision=precision, batch=2))
    after = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
    assert after == (tf32, tf32, True)


def test_sides_of_a_gpu():
    fp32_and_bf16, tf32 = parts.groups(options(gpu=True), "epoch")
    assert all(side.base is group[0] for group in (fp32_and_bf16, tf32) for side in group)
    assert {side.spec.precision for side in fp32_and_bf16} == {"fp32", "bf16"}
    assert {side.spec.precision for side in tf32} == {"tf32"} and tf32[0].spec.side == "reference"
    how = [(side.spec.capture, side.spec.channels_last, side.spec.compile) for side in tf32[1:]]
    assert how == [
        (False, True, False),
        (True, True, False),
        (True, False, False),
        (True, True, True),
    ]


def test_each_attention_is_compared_with_none(monkeypatch):
    monkeypatch.setattr(parts, "take_turns", lambda title, sides, options: sides)
    monkeypatch.setattr(parts, "summarise", lambda sides, *_: sides)
    groups = list(parts.attention(options()))
    assert [sides[0].variant for sides in groups] == ["fp32", "fp32 compiled", "bf16"]
    assert all([side.spec.attention for side in sides] == list(ATTENTIONS) for sides in groups)
    assert all(side.base is sides[0] for sides in groups for side in sides)


def test_units_do_what_they_are_counted_for(monkeypatch):
    bound, seen = [], []
    monkeypatch.setattr(
        project, "bind", lambda *args, bind=project.bind: bound.append(bind(*args)) or bound[-1]
    )
    spec = Spec(overrides={"layers": 8}, batch=8, steps=3, loaders=0)
    for make in (project.epoch, project.evaluation):
        unit = make(spec)
        assert (
            unit() == unit() == bound[-1].step.totals[-1] == 24
        )  # totals begin anew with each unit
    assert reference.assembly(spec)() == project.assembly(spec)() == 20 * 8
    assert reference.evaluation(spec)() == reference.step(spec)() == 8

    def step(images, labels):
        seen.extend(images.tolist())
        return torch.zeros(len(labels), 10), torch.zeros(())

    monkeypatch.setattr(reference, "training", lambda spec: (None, step))
    monkeypatch.setattr(reference.Images, "__getitem__", lambda self, i: (i, self.targets[i]))
    assert reference.epoch(spec)() == 24
    assert sorted(seen) == list(range(24)) and seen != sorted(seen)


def test_a_side_that_fails_in_its_process_becomes_a_row(capfd):
    rounds = take_turns("", [Side(options(), "no_such_work")], options())
    assert summarise(rounds, "step")[0]["remark"].startswith("failed: AttributeError")
    assert "Traceback" in capfd.readouterr().err


def test_a_command_that_ends_before_its_first_step_is_an_error():
    with pytest.raises(RuntimeError, match="-c ended before its first step"):
        startup.first_step(Spec(), ["-c", "pass"], "never")


class InProcess:
    """What a side does in a process of its own, done in this one."""

    def __init__(self, *_):
        self.worker = None

    def submit(self, function, *args):
        task, worker.worker = Future(), self.worker
        try:
            task.set_result(function(*args))
        except Exception as error:
            task.set_exception(error)
        self.worker = worker.worker
        return task

    def shutdown(self):
        pass


def test_the_parts_for_a_gpu_with_their_sides_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(sides, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(sides, "Spec", partial(Spec, batch=2))
    monkeypatch.setattr(parts, "LARGE", "densenet40")
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setenv("PATH", str(tmp_path))  # no MPS
    file = tmp_path / "b.csv"
    words = "--gpu --device cpu --threads 1 --quick --networks resnet20 --out"
    main([*words.split(), str(file)])
    rows = list(csv.DictReader(file.read_text().splitlines()))
    parts_of = {
        part: [row["variant"] for row in rows if row["part"] == part] for part in parts.GPU_PARTS
    }
    both = [name for reference, ours in parts.GPU_VARIANTS.items() for name in (reference, *ours)]
    assert parts_of["step"] == parts_of["epoch"] == both
    assert len(parts_of["packed"]) == 4 and len(parts_of["memory"]) == 2 * 5
    for row in rows:
        if row["variant"].startswith("tf32"):
            assert row["remark"] == "not on this processor"
        elif row["variant"] == "MPS":
            assert row["remark"].startswith("not on this machine: ")
        else:
            assert row["remark"] == "not on this processor" or float(row["ratio"]) > 0 < float(
                row["images_per_second"]
            )
        assert row["remark"] != "not on this processor" or row["variant"][:4] in ("tf32", "bf16")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--parts", "step,lop"], "--parts lop: there is none of that name"),
        (["--parts", "step,packed"], "--parts packed: there is none"),
        (
            ["--networks", "resnet50"],
            "--networks resnet50: there is none of that name; choose from densenet",
        ),
        (["--rounds", "0"], "at least 1"),
        (["--out", "/nowhere/b.csv"], "no folder /nowhere"),
        (["--out", "/proc/version"], "not a table of this script"),
        (["--gpu"], "no usable NVIDIA GPU"),
    ],
)
def test_bad_options_end_in_one_message(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def run(tmp_path, *arguments):
    """The command, from another folder; its rows by (what, variant)."""
    words = "--quick --threads 1 --out b.csv"
    command = [sys.executable, ROOT / "scripts" / "benchmark", *words.split(), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nb.csv written\n")
    return {
        (row["what"], row["variant"]): row for row in csv.DictReader((tmp_path / "b.csv").open())
    }


def test_a_part_from_the_command_line(tmp_path):
    rows = run(tmp_path, "--parts", "assembly")
    assert list(rows) == [("assembly", "reference"), ("assembly", "project")]
    ours, plain = (
        float(rows["assembly", side]["cpu_seconds_per_image"]) for side in ("project", "reference")
    )
    assert ours < 0.2 * plain


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_most_parts_from_the_command_line(tmp_path):
    rows = run(tmp_path, "--networks", "resnet20", "--parts", "step,epoch,evaluation,startup")
    for what in ("step", "epoch"):
        assert {v for w, v in rows if w == what} == {"reference", *parts.VARIANTS["reference"]}
    ours, plain = (
        float(rows["step", side]["cpu_seconds_per_image"]) for side in ("fp32", "reference")
    )
    assert ours < plain and float(rows["startup", "train.py"]["ratio"]) > 0


# --------------------------------------------------------------------------------------------- the load of the machine


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A function (moment, seconds of work and of rest, own seconds): sets what is read then."""
    monkeypatch.setattr(other_load, "STAT", str(tmp_path / "stat"))

    def read(moment, own=0.0, **seconds):
        kinds = (
            "user",
            "nice",
            "system",
            "idle",
            "disk",
            "irq",
            "softirq",
            "steal",
            "guest",
            "guest_nice",
        )
        fields = [str(int(seconds.get(kind, 0) * os.sysconf("SC_CLK_TCK"))) for kind in kinds]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(fields)}\ncpu0 1 1 1\n")
        monkeypatch.setattr(other_load.time, "monotonic", lambda: moment)
        monkeypatch.setattr(
            other_load.os, "times", lambda: (own / 2, own / 4, own / 8, own / 8, moment)
        )
        return other_load.work()

    return read


def test_others_are_all_work_less_ones_own_and_that_of_children(at):
    """Time that is idle or that the host withholds is no work."""
    start = at(100, user=50, system=5, idle=400)
    at(110, user=62, system=8, idle=405, disk=2, steal=6, own=7.0)  # 15 seconds of work in 10
    assert other_load.others(start) == pytest.approx(0.8)
    assert other_load.others(start, children=5.0) == pytest.approx(0.3)
    at(110, user=54, system=5, idle=405, irq=3, own=4.0)
    assert other_load.others(start) == pytest.approx(0.3)


def test_a_moment_is_too_short_and_a_machine_without_proc_unknown(at, monkeypatch):
    start = at(100)
    at(100.1, user=5)
    assert other_load.others(start) == 0
    at(101, user=5)
    assert other_load.others(start) == 5
    monkeypatch.setattr(other_load, "STAT", "/nowhere")
    assert other_load.work() is None and other_load.others(start) == other_load.others(None) == 0
