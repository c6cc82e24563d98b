"""The examples of docs/extending.md, written into a copy of the project and trained."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the files of the document, none of which was there before."""
    copy = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "train.py", copy)
    for folder in ("lcm", "hydra_plugins", "configs", "scripts"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    assert len(files) == 6
    for name, text in files:
        assert not (copy / name).exists()
        (copy / name).write_text(text, encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("attention=mine model.layers=8 schedule.epochs=1", "resnet20/mine"),
        ("model=plain attention=se attention.reduction=4 schedule=brief", "plain/se"),
        ("model=plain attention=se", "attention=se has no sizes for networks of the family plain"),
        ("attention=mine attention.reduction=17", "reduction 17 is larger than the 16 channels"),
    ],
)
def test_an_example_trains_or_what_is_missing_is_named(project, words, found):
    command = [
        sys.executable,
        "train.py",
        *words.split(),
        "threads=1",
        "tensorboard=false",
        "runs=runs",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    if " " in found:
        assert ended.returncode == 2 and found in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
        (record,) = (project / "runs" / "digits" / found).glob("*/run.json")
        assert json.loads(record.read_text())["result"]["test_top1"] > 0


def test_fine_tuning_starts_from_the_trained_network(project):
    """Lines with their numbers: no change at the start, a factor that has moved, the cost of
    ResNet-18 at 64 pixels."""
    environment = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "finetune.py"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    change, a, cost = (float(line.rpartition(" ")[2]) for line in ended.stdout.splitlines())
    assert change == 0 and a != 0 and 0.14 < cost < 0.16
    assert (project / "finetuned.pt").exists()
