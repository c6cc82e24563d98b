"""The README's speed tables are rows of results/benchmark.md."""

from pathlib import Path

from lcm.reporting.speed import MODULES, ROWS, read_benchmark, speed_block

RESULTS = Path(__file__).resolve().parents[2] / "results"
TABLE = """# Speed on a CPU

## epoch

X, 2 threads; 2026-11-22; 10 undisturbed rounds, 3 disturbed ones thrown away.

| network | attention | what | variant | images/s | CPU-ms/image | peak MB | ratio (lowest-highest) | |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |
| resnet20 | none | epoch | fp32 | 274.2 | 7.194 | 755 | 1.520 (1.366-1.890) |  |

## attention

X, 2 threads; 2026-11-21; 15 undisturbed rounds, 0 disturbed ones thrown away; more words.

| network | attention | what | variant | images/s | CPU-ms/image | peak MB | ratio (lowest-highest) | |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |
| resnet20 | lcm2 | attention | fp32 | 225.9 | 8.306 | 777 | 1.213 (1.195-2.328) |  |
"""


def test_rows_are_taken_over_and_others_are_dashes(tmp_path):
    assert speed_block(tmp_path).startswith("Not measured yet")
    (tmp_path / "benchmark.md").write_text(TABLE)
    lines = speed_block(tmp_path).splitlines()
    assert lines[0] == "X, 2 threads; 2026-11-21 to 2026-11-22; 25 undisturbed rounds in all."
    assert "| whole epochs of ResNet-20, images/s | 1.52 (1.37-1.89) |" in lines
    assert "| whole epochs of DenseNet-40, images/s | – |" in lines
    assert "| ResNet-20 | – | – | – | – | – | 1.21 |" in lines


def test_every_row_of_the_readme_is_measured():
    ratios, sections = read_benchmark(RESULTS)
    assert {(network, "none", what, variant) for network, what, variant in ROWS.values()} <= set(ratios)
    assert {(network, "lcm2", "attention", variant) for network, variant in MODULES.values()} <= set(ratios)
    assert sections
