"""Every code block of the README runs in a copy, made shorter; what takes hours is composed. The
copy has the files of docs/extending.md, whose examples run there, too.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

pytestmark = pytest.mark.commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
]
COMMANDS = [command.strip() for line in LINES if line for command in line.split("&&")]
ELSEWHERE = ("python scripts/complexity.py",)  # tests/paper/test_complexity.py runs it
PYTHON = [c for c in dict.fromkeys(COMMANDS) if c.startswith("python ") and c not in ELSEWHERE]
# of a run on the digits
SHORT = ["schedule.epochs=1", "model.layers=8", "threads=1", "tensorboard=false"]


EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", EXTENDING, re.M | re.S)
OWN = "schedule=brief threads=1 tensorboard=false runs=own"
SMALL = "model.layers=10 model.widen=1"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the checkout with the files of docs/extending.md, which were not there before."""
    folder = tmp_path_factory.mktemp("readme") / "lcm"
    for name in ("configs", "hydra_plugins", "lcm", "scripts", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    assert len(FILES) == 11
    for name, text in FILES:
        assert not (folder / name).exists()
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def python(copy, *words):
    """What Python prints there."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


def test_there_are_blocks_and_nothing_else_between_fences():
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert README.count("```") == 2 * len(BLOCKS)
    assert {c.split()[0] for c in COMMANDS} == {"git", "cd", "python3", "source", "pip", "python"}


def shortened(words):
    """A command's arguments so that it takes seconds; what takes hours is shown, not trained."""
    if words[0] == "train.py" and any(w.startswith(("data=cifar", "experiment=")) for w in words):
        return ["scripts/status.py", *words[1:]]
    words = [w.replace("range(7)", "range(1)").replace("epochs=4", "epochs=1") for w in words]
    short = {"train.py": SHORT, "scripts/compare.py": ["model.layers=8"]}
    return words + short.get(words[0], [])


@pytest.mark.parametrize("command", PYTHON)
def test_command(command, copy):
    words = shortened(shlex.split(command)[1:])
    shown = {"train.py": "test top-1", "scripts/compare.py": "mine", "scripts/status.py": "to do"}
    assert shown.get(words[0], "") in python(copy, *words)


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python(text):
    import torch

    names = {}
    exec(text, names)  # the README's own lines
    network = names["network"].eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(type(module).__name__ == "LCM2" for module in network.modules()) == 8


# docs/extending.md


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
def test_an_example_trains(copy, words, model, attentions):
    python(copy, "train.py", *f"{words} {OWN}".split())
    for attention in attentions.split(","):
        (record,) = (copy / "own" / "digits" / model / attention).glob("*/run.json")
        assert json.loads(record.read_text())["result"]["test_top1"] > 0


def test_a_data_set_may_have_a_file(copy):
    (command,) = re.findall(r"^python train\.py (data=pets .*)$", EXTENDING, re.M)
    assert "to do" in python(copy, "scripts/status.py", *command.split())


@pytest.mark.slow
def test_a_sweep_over_any_key_is_compared_by_it(copy):
    for command in re.findall(r"^python (.*schedule[.=](?:adamw|learning).*)$", EXTENDING, re.M):
        small = " model.layers=8 threads=1 runs=swept" if command.startswith("train.py") else ""
        shown = python(copy, *(command.replace(" runs ", " swept ") + small).split())
    assert "mine reduction=8" in shown and "none" in shown


def test_the_scripts_do_what_they_say(copy, tmp_path, monkeypatch, capsys):
    """Lines with their numbers: no change at the start, a factor that has moved, the cost of
    ResNet-18 at 64 pixels; and how many modules were replaced."""
    monkeypatch.chdir(tmp_path)
    for script in ("finetune.py", "instead.py"):
        runpy.run_path(str(copy / script))
    *lines, replaced = capsys.readouterr().out.splitlines()
    change, a, cost = (float(line.rpartition(" ")[2]) for line in lines)
    assert change == 0 and a != 0 and 0.14 < cost < 0.16
    assert (tmp_path / "finetuned.pt").exists()
    assert replaced == "replaced: 9 left: 0"
