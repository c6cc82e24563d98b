"""The examples of docs/extending.md, written into a copy of the project and run."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.M | re.S)
SHORT = "schedule=brief threads=1 tensorboard=false runs=runs"
SMALL = "model.layers=10 model.widen=1"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the files of the document, none of which was there before."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "train.py", copy)
    for folder in ("lcm", "hydra_plugins", "configs", "scripts"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = BLOCK.findall(TEXT)
    assert len(files) == 10
    for name, text in files:
        assert not (copy / name).exists()
        (copy / name).write_text(text, encoding="utf-8")
    return copy


def python(project, words):
    """What Python prints there."""
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words.split()]
    ended = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("words", "model", "attentions"),
    [
        (f"-m model=wide_resnet attention=none,se,lcm2,mine {SMALL}", "wide_resnet",
            "none,se,lcm2,mine"),
        pytest.param(
            f"model=wide_resnet attention=cbam attention.reduction=16 attention.bias=true {SMALL}",
            "wide_resnet", "cbam", marks=pytest.mark.slow),
        ("model=convnext attention=lcm2 model.depths=[1,1,1,1] model.width=16", "convnext", "lcm2"),
    ],
    ids=["module and backbone", "a size given", "library"],
)  # fmt: skip
def test_an_example_trains(project, words, model, attentions):
    python(project, f"train.py {words} {SHORT}")
    for attention in attentions.split(","):
        (record,) = (project / "runs" / "digits" / model / attention).glob("*/run.json")
        assert json.loads(record.read_text())["result"]["test_top1"] > 0


@pytest.mark.slow
def test_a_sweep_over_any_key_is_compared_by_it(project):
    for command in re.findall(r"^python (.*schedule[.=](?:adamw|learning).*)$", TEXT, re.M):
        small = " model.layers=8 threads=1 runs=swept" if command.startswith("train.py") else ""
        shown = python(project, command.replace(" runs ", " swept ") + small)
    assert "mine reduction=8" in shown and "none" in shown


def test_the_scripts_do_what_they_say(project, tmp_path, monkeypatch, capsys):
    """Lines with their numbers: no change at the start, a factor that has moved, the cost of
    ResNet-18 at 64 pixels; and how many modules were replaced."""
    monkeypatch.chdir(tmp_path)
    for script in ("finetune.py", "instead.py"):
        runpy.run_path(str(project / script))
    *lines, replaced = capsys.readouterr().out.splitlines()
    change, a, cost = (float(line.rpartition(" ")[2]) for line in lines)
    assert change == 0 and a != 0 and 0.14 < cost < 0.16
    assert (tmp_path / "finetuned.pt").exists()
    assert replaced == "replaced: 9 left: 0"
