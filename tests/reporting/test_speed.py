"""benchmark.md and the README's paragraph are views of results/benchmark.csv."""

from lcm.reporting.speed import benchmark_page, read_benchmark, speed_paragraph

CSV = """\
date,machine,torch,threads,part,network,attention,what,variant,images_per_second,cpu_seconds_per_image,peak_mb,ratio,low,high,rounds,disturbed,remark
2026-11-22,X,2.6,2,epoch,resnet20,none,epoch,fp32,274.2,0.007194,755,1.520,1.366,1.890,10,3,
2026-11-22,X,2.6,2,epoch,resnet20,none,epoch,reference,180.4,0.010,755,1,1,1,10,3,
2026-11-22,X,2.6,2,epoch,resnet20,none,epoch,bf16,,,,,,,,,not on this processor
2026-11-21,X,2.6,2,attention,resnet20,lcm2,attention,fp32,225.9,0.008306,777,1.213,1.195,2.328,15,0,
2026-11-21,X,2.6,2,attention,resnet20,mine,attention,fp32,225.9,0.008306,777,1.5,1.4,1.6,15,0,
2026-11-21,X,2.6,2,attention,resnet20,all,attention,bf16,,,,,,,,,not on this processor
"""


def test_the_page_has_every_row(tmp_path):
    (tmp_path / "benchmark.csv").write_text(CSV)
    lines = benchmark_page(read_benchmark(tmp_path / "benchmark.csv")).splitlines()
    assert (
        "| resnet20 | none | epoch | fp32 | 274.2 | 7.194 | 755 | 1.520 (1.366-1.890) |  |" in lines
    )
    assert "| resnet20 | all | attention | bf16 |  |  |  |  | not on this processor |" in lines
    assert "X, 2 threads, torch 2.6; 2026-11-21; 15 undisturbed rounds behind each figure." in lines
    assert [line for line in lines if line.startswith("## ")] == ["## epoch", "## attention"]


def test_the_paragraph_has_the_epochs_that_were_measured(tmp_path):
    (tmp_path / "benchmark.csv").write_text(CSV)
    rows = read_benchmark(tmp_path / "benchmark.csv")
    assert speed_paragraph(rows).startswith(
        "Whole epochs, images/s over those of a plain PyTorch loop: ResNet-20 1.52 (fp32). X, 2 threads, torch 2.6; 2026-11-22; "
        "10 undisturbed rounds behind each figure."
    )
    assert speed_paragraph(rows[rows["part"] != "epoch"]) == "Not measured yet."
