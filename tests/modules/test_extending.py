"""The examples of docs/extending.md, written into a copy of the project and run."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.M | re.S)
SHORT = "schedule=brief threads=1 tensorboard=false runs=runs"
SIZES = "attention.reduction=16 attention.bias=true"
SMALL = {
    "wide_resnet": "model.layers=10 model.widen=1",
    "convnext": "model.depths=[1,1,1,1] model.width=16",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python in a copy of the project with the files of the document, none of which was there
    before."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "train.py", copy)
    for folder in ("lcm", "hydra_plugins", "configs", "scripts"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    assert len(files) == 10
    for name, text in files:
        assert not (copy / name).exists()
        (copy / name).write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}

    def run(words, code=0):
        command = [sys.executable, *words.split()]
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        return ended.stderr if code else ended.stdout

    run.folder = copy
    return run


@pytest.mark.parametrize(
    ("words", "model", "attentions"),
    [
        ("attention=mine model.layers=8", "resnet20", "mine"),
        (f"-m model=wide_resnet attention=none,se,lcm2,mine {SMALL['wide_resnet']}", "wide_resnet",
            "none,se,lcm2,mine"),
        pytest.param(f"model=wide_resnet attention=cbam {SIZES} {SMALL['wide_resnet']}",
            "wide_resnet", "cbam", marks=pytest.mark.slow),
        (f"model=convnext attention=lcm2 {SMALL['convnext']}", "convnext", "lcm2"),
    ],
    ids=["module", "backbone", "a size given", "library"],
)  # fmt: skip
def test_an_example_trains(python, words, model, attentions):
    python(f"train.py {words} {SHORT}")
    for attention in attentions.split(","):
        (record,) = (python.folder / "runs" / "digits" / model / attention).glob("*/run.json")
        assert json.loads(record.read_text())["result"]["test_top1"] > 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("model=convnext attention=gc", "attention=gc has no sizes for networks of "
                                        "the family conv"),
        ("attention=mine attention.reduction=17", "reduction 17 is larger than the 16 channels"),
        ("model=wide_resnet attention=mine model.layers=11", "6n + 4 layers (10, 16, 22, "
                                                             "28, ...), not 11"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(python, words, found):
    assert found in python(f"train.py {words} {SHORT}", code=2)


@pytest.mark.slow  # tests/runs/test_swept_values.py has it in small
def test_a_sweep_over_any_key_is_compared_by_it(python):
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for command in re.findall(r"^python (.*schedule[.=](?:adamw|learning).*)$", text, re.M):
        small = " model.layers=8 threads=1 runs=swept" if command.startswith("train.py") else ""
        shown = python(command.replace(" runs ", " swept ") + small)
    assert "mine reduction=8" in shown and "none" in shown


def test_fine_tuning_starts_from_the_trained_network(python):
    """Lines with their numbers: no change at the start, a factor that has moved, the cost of
    ResNet-18 at 64 pixels."""
    lines = python("finetune.py").splitlines()
    change, a, cost = (float(line.rpartition(" ")[2]) for line in lines)
    assert change == 0 and a != 0 and 0.14 < cost < 0.16
    assert (python.folder / "finetuned.pt").exists()


def test_a_networks_own_attention_is_replaced(python):
    assert python("instead.py") == "replaced: 9 left: 0\n"
