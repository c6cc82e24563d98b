"""Every code block of the README runs in a copy, made shorter; what takes hours is composed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the checkout with an attention module of its user's."""
    folder = tmp_path_factory.mktemp("readme") / "lcm"
    for name in ("configs", "hydra_plugins", "lcm", "scripts", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    text = (ROOT / "lcm/attention/squeeze_excite.py").read_text()
    (folder / "lcm/attention/mine.py").write_text(text.replace("SqueezeExcite", "Mine"))
    (folder / "configs/attention/mine.yaml").write_text(
        "name: mine\n_target_: lcm.attention.mine.Mine\nreduction: 4\nsites: every\n"
    )
    return folder


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
    _, *words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *shortened(words)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = {"train.py": "test top-1", "scripts/compare.py": "mine", "scripts/status.py": "to do"}
    assert shown.get(shortened(words)[0], "") in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python(text):
    import torch

    names = {}
    exec(text, names)  # the README's own lines
    network = names["network"].eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(type(module).__name__ == "LCM2" for module in network.modules()) == 8
