"""The README's speed tables and benchmark.md are views of results/benchmark.csv."""

from invented_runs import ROOT

from lcm.reporting.speed import MODULES, ROWS, benchmark_page, read_benchmark, speed_block

CSV = """\
date,machine,torch,threads,part,network,attention,what,variant,images_per_second,cpu_seconds_per_image,peak_mb,ratio,low,high,rounds,disturbed,remark
2026-11-22,X,2.6,2,epoch,resnet20,none,epoch,fp32,274.2,0.007194,755,1.520,1.366,1.890,10,3,
2026-11-21,X,2.6,2,attention,resnet20,lcm2,attention,fp32,225.9,0.008306,777,1.213,1.195,2.328,15,0,
2026-11-21,X,2.6,2,attention,resnet20,mine,attention,fp32,225.9,0.008306,777,1.5,1.4,1.6,15,0,
2026-11-21,X,2.6,2,attention,resnet20,all,attention,bf16,,,,,,,,,not on this processor
"""


def test_rows_are_taken_over_and_others_are_dashes(tmp_path):
    assert speed_block(tmp_path).startswith("Not measured yet")
    (tmp_path / "benchmark.csv").write_text(CSV)
    lines = speed_block(tmp_path).splitlines()
    assert (
        lines[0] == "X, 2 threads, torch 2.6; 2026-11-21 to 2026-11-22; 10 to 15 undisturbed rounds behind each figure."
    )
    assert "| whole epochs of ResNet-20, images/s | 1.52 (1.37-1.89) |" in lines
    assert "| whole epochs of DenseNet-40, images/s | – |" in lines
    assert "| step time over none | se | cbam | nonlocal | gc | lcm1 | lcm2 | mine |" in lines
    assert "| ResNet-20 | – | – | – | – | – | 1.21 | 1.50 |" in lines


def test_the_page_has_every_row(tmp_path):
    (tmp_path / "benchmark.csv").write_text(CSV)
    lines = benchmark_page(read_benchmark(tmp_path / "benchmark.csv")).splitlines()
    assert "| resnet20 | none | epoch | fp32 | 274.2 | 7.194 | 755 | 1.520 (1.366-1.890) |  |" in lines
    assert "| resnet20 | all | attention | bf16 |  |  |  |  | not on this processor |" in lines
    assert [line for line in lines if line.startswith("## ")] == ["## epoch", "## attention"]


def test_every_row_of_the_readme_is_measured():
    rows = read_benchmark(ROOT / "results" / "benchmark.csv").itertuples()
    measured = {(row.network, row.attention, row.what, row.variant) for row in rows if row.ratio > 0}
    assert {(network, "none", what, variant) for network, what, variant in ROWS.values()} <= measured
    assert {(network, "lcm2", "attention", variant) for network, variant in MODULES.values()} <= measured
