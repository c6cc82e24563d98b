"""A sweep over two keys, whole runs: their values are shown wherever the runs are."""

import itertools
import re

import compare
import status
from events import hparams
from processes import REAL, TINY, succeed

RATES, REDUCTIONS = ("0.05", "0.1"), ("4", "8")
ALL = set(itertools.product(REDUCTIONS, RATES))


def shown(text):
    """The pairs (reduction, learning rate) in the lines of runs."""
    lines = [line for line in text.splitlines() if "finished     1/1" in line]
    pattern = r"attention.reduction=(\S+)  schedule.learning_rate=(\S+)"
    return [re.search(pattern, line).groups() for line in lines]


def test_the_values_of_a_sweep_are_shown_everywhere(tmp_path, monkeypatch, capsys):
    grid = [
        f"schedule.learning_rate={','.join(RATES)}",
        f"attention.reduction={','.join(REDUCTIONS)}",
    ]
    words = ["-m", "attention=se", *grid, *TINY, "tensorboard=true", "runs=runs"]
    output = succeed(REAL, *words, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    status.main(["runs"])
    for text in (output, capsys.readouterr().out):
        assert sorted(shown(text)) == sorted(ALL)

    pages = [hparams(folder) for folder in tmp_path.glob("runs/*/*/*/*/tensorboard")]
    keys = ("attention.reduction", "schedule.learning_rate")
    assert {tuple(f"{page[key].number_value:g}" for key in keys) for page in pages} == ALL

    first = f"se reduction={REDUCTIONS[0]}"
    compare.main(["runs", "--by", "schedule.learning_rate", "--by", keys[0], "--against", first])
    rows = re.findall(r"^ +(\S+) se reduction=(\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert rows == [(rate, reduction) for rate in RATES for reduction in REDUCTIONS]
