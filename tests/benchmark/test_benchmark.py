"""The benchmark: what it counts, throws away and prints, and that both sides do the work they are timed for."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmark")  # of scripts/, where pytest looks for modules too


def options(**changes):
    return SimpleNamespace(**{"gpu": False, "threads": 1, "seconds": 0.01, "loaders": 0, "rounds": 2} | changes)


def report(images=100, wall=1.0, cpu=1.5, peak_mb=500.0):
    return {"images": images, "wall": wall, "cpu": cpu, "cpu_of_turn": cpu, "peak_mb": peak_mb}


class FakeSide:
    """Takes its turns from a list; the machine is as busy as `others` says, turn by turn."""

    def __init__(self, variant, reports, refused=None):
        self.variant, self.reports, self.refused, self.first = variant, iter(reports), refused, 0.5
        self.running = False

    def start(self):
        self.running = not self.refused
        return self.running

    def turn(self):
        assert self.running
        return next(self.reports)

    def stop(self):
        self.running = False


@pytest.fixture
def load(benchmark, monkeypatch):
    """Sets how many processors others keep busy in each turn."""

    def busy(turns):
        turns = iter(turns)

        class FakeLoad:
            def others(self):
                return next(turns) + 1e9  # the side's own share is taken off again

        monkeypatch.setattr(benchmark, "Load", FakeLoad)
        monkeypatch.setattr(benchmark.time, "monotonic", iter(range(10_000)).__next__)  # a turn takes a second
        return [report(cpu=1e9)] * 20

    return busy


@pytest.mark.parametrize("stay", [True, False])
def test_disturbed_rounds_are_thrown_away_and_repeated(benchmark, load, stay):
    reports = load([0.0, 0.0, 0.0, 0.3, 0.05, 0.09])  # two turns a round: the second round is disturbed
    sides = [FakeSide("reference", reports), FakeSide("fp32", reports)]
    rounds = benchmark.take_turns(sides, 2, stay)
    assert (len(rounds.reports), rounds.thrown_away, rounds.calm) == (2, 1, True)
    assert not any(side.running for side in sides)


def test_without_a_calm_round_the_figures_are_marked(benchmark, load):
    reports = load([0.5] * 20)
    rounds = benchmark.take_turns([FakeSide("reference", reports), FakeSide("fp32", reports)], 2)
    assert (len(rounds.reports), rounds.calm) == (4, False)  # gives up after twice as many as were asked for
    assert {row.remark for row in benchmark.summarise(rounds, "resnet20", "step", "reference")} == {"disturbed"}


def test_what_is_refused_becomes_a_row(benchmark, load):
    reports = load([0.0] * 20)
    why = "precision=bf16: this processor has neither avx512_bf16 nor amx_bf16"
    sides = [FakeSide("reference", reports), FakeSide("bf16", [], refused=why)]
    rounds = benchmark.take_turns(sides, 2)
    rows = benchmark.summarise(rounds, "resnet20", "step", "reference")
    assert [(row.variant, row.remark) for row in rows] == [("reference", ""), ("bf16", "not on this processor")]
    nothing = benchmark.take_turns([FakeSide("bf16", [], refused=why)], 2)
    assert [row.variant for row in benchmark.summarise(nothing, "resnet20", "step", "bf16")] == ["bf16"]


def rows_of_three_rounds(benchmark):
    reports = [
        {"reference": report(100, 1.0), "fp32": report(150, 1.0, peak_mb=400.0)},
        {"reference": report(50, 1.0), "fp32": report(100, 1.0, peak_mb=450.0)},  # a slow round: both are slow
        {"reference": report(110, 1.0), "fp32": report(176, 1.0, peak_mb=425.0)},
    ]
    rounds = benchmark.Rounds(reports, 0, True, {"bf16": "precision=bf16: no"}, {})
    return benchmark.summarise(rounds, "resnet20", "step", "reference")


def test_medians_and_ratios_within_rounds(benchmark):
    _, fp32, bf16 = rows_of_three_rounds(benchmark)
    assert fp32.images_per_second == 150
    assert fp32.cpu_seconds_per_image == pytest.approx(1.5 / 150)
    assert fp32.peak_mb == 450
    assert fp32.ratios == pytest.approx((1.5, 2.0, 1.6))
    assert fp32.ratio == pytest.approx(1.6)  # the median of the rounds' ratios, not the ratio of the medians
    assert bf16.ratio is None


def test_table_and_csv(benchmark, tmp_path):
    rows = rows_of_three_rounds(benchmark)
    table = benchmark.markdown(rows).splitlines()
    assert table[3] == "| resnet20 | none | step | fp32 | 150.0 | 10.000 | 450 | 1.600 (1.500-2.000) |  |"
    assert table[4] == "| resnet20 | none | step | bf16 |  |  |  |  | not on this processor |"
    benchmark.write_csv(tmp_path / "b.csv", rows)
    text = (tmp_path / "b.csv").read_text()
    assert (
        text.splitlines()[0] == "network,attention,what,variant,images_per_second,cpu_seconds_per_image,peak_mb,ratio"
    )
    read = list(csv.DictReader(text.splitlines()))
    assert read[1]["ratio"] == "1.6"
    assert read[2]["images_per_second"] == ""


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--parts", "step,lop"], "no such part"),
        (["--networks", "resnet50"], "no network for 32x32 images"),
        (["--rounds", "0"], "at least 1"),
        (["--csv", "/nowhere/b.csv"], "no folder /nowhere"),
        pytest.param(
            ["--gpu"], "no usable NVIDIA GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
        ),
    ],
)
def test_bad_options_end_in_one_message(benchmark, arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_part_measured_anew_replaces_its_section_alone(benchmark, tmp_path):
    page = tmp_path / "b.md"
    benchmark.write_sections(page, "Speed", {"loop": "old loop\n\n| a |", "step": "step"})
    assert page.read_text() == "# Speed\n\n## step\n\nstep\n\n## loop\n\nold loop\n\n| a |\n"
    benchmark.write_sections(page, "Speed", {"loop": "new loop", "epoch": "epoch"})
    assert page.read_text() == "# Speed\n\n## step\n\nstep\n\n## epoch\n\nepoch\n\n## loop\n\nnew loop\n"


def test_a_section_says_what_the_readme_reads(benchmark, tmp_path):
    from lcm.reporting.speed import read_benchmark, speed_block

    measured = benchmark.Benchmark(benchmark.parse(["--threads", "2"]))
    measured.options.loaders = 2
    measured.rows, measured.kept, measured.thrown_away = rows_of_three_rounds(benchmark), 3, 1
    measured.note("a note")
    text = benchmark.section(measured, "python scripts/benchmark", withheld=0.25)
    assert "1 disturbed ones thrown away; a virtual machine's host withheld 0.25 processors" in text
    assert text.startswith("`python scripts/benchmark`\n") and text.endswith("\n\n- a note")
    benchmark.write_sections(tmp_path / "benchmark.md", "Speed", {"step": text})
    ratios, (line,) = read_benchmark(tmp_path)
    assert ratios["resnet20", "none", "step", "fp32"].startswith("1.60 (")
    assert f"{line.split('; 20')[0]}; " in speed_block(tmp_path) and "3 undisturbed rounds in all." in speed_block(
        tmp_path
    )


def test_every_part_exists(benchmark):
    assert all(callable(getattr(benchmark.Benchmark, part)) for part in benchmark.PARTS)


def test_both_sides_train_the_same_network(benchmark):
    side = benchmark.Side(options(), "step", "fp32", network="resnet20")
    plain, step = benchmark.plain_training(side.spec)
    ours = benchmark.project_trainer(side.spec)
    for (name, a), (_, b) in zip(plain.named_parameters(), ours.network.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    first = [p.detach().clone() for p in plain.parameters()]
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    losses = [step(images, labels)[1].item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(first, plain.parameters(), strict=True))


def test_units_do_what_they_are_counted_for(benchmark):
    spec = benchmark.Side(options(), "loop", "fp32", network="resnet20", overrides={"layers": 8}).spec | {"steps": 2}
    unit = benchmark.project_loop(spec)
    assert unit() == 2 * benchmark.BATCH
    assert unit.spent["inside"] > 0
    assert benchmark.project_evaluation(spec)() == 200
    assert benchmark.plain_assembly(spec)() == benchmark.project_assembly(spec)() == 20 * benchmark.BATCH


def test_the_reference_sees_every_image_once_an_epoch(benchmark):
    spec = benchmark.Side(options(), "epoch", "reference", side="reference").spec | {"steps": 1, "loaders": 1}
    assert benchmark.plain_epoch(spec)() == benchmark.BATCH


def test_bf16_is_refused_where_the_processor_lacks_it(benchmark, monkeypatch):
    from lcm.errors import UserError
    from lcm.training import device

    monkeypatch.setattr(device, "cpu_info", lambda key: "sse2 avx512f" if key == "flags" else "a processor")
    with pytest.raises(UserError, match="precision=bf16: this processor"):
        benchmark.project_step(benchmark.Side(options(), "step", "bf16 compiled").spec)
    assert benchmark.Side(options(), "step", "bf16 compiled").spec["compile"] is True


@pytest.mark.slow
def test_the_whole_of_it_quickly(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark"),
        "--quick",
        "--threads",
        "1",
        "--networks",
        "resnet20",
    ]
    command += ["--parts", "step,epoch,assembly,loop,evaluation,startup", "--csv", str(tmp_path / "b.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    rows = {(r["what"], r["variant"]): r for r in csv.DictReader((tmp_path / "b.csv").read_text().splitlines())}
    assert {what for what, _ in rows} == {"step", "epoch", "assembly", "loop", "evaluation", "startup"}
    for what in ("step", "epoch"):
        assert {v for w, v in rows if w == what} == {"reference", "fp32", "fp32 compiled", "bf16", "bf16 compiled"}

    def cpu(what, variant):
        return float(rows[what, variant]["cpu_seconds_per_image"])

    assert cpu("assembly", "project") < 0.2 * cpu("assembly", "reference")
    assert cpu("step", "fp32") < cpu("step", "reference")
    assert float(rows["loop", "fp32"]["ratio"]) < 0.1
    assert float(rows["startup", "train.py"]["ratio"]) < 1
    assert "| resnet20 | none | step | fp32 |" in done.stdout
