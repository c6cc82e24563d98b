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
SHORT = [
    "schedule.epochs=1",
    "model.layers=8",
    "threads=1",
    "tensorboard=false",
]  # of a run on the digits


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the checkout with an attention module of its user's."""
    folder = tmp_path_factory.mktemp("readme") / "lcm"
    for name in ("configs", "hydra_plugins", "lcm", "scripts", "results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    text = (
        (ROOT / "lcm" / "attention" / "squeeze_excite.py")
        .read_text()
        .replace("SqueezeExcite", "Mine")
    )
    (folder / "lcm" / "attention" / "mine.py").write_text(text)
    (folder / "configs" / "attention" / "mine.yaml").write_text(
        "name: mine\n_target_: lcm.attention.mine.Mine\nreduction: 4\nsites: every\n"
    )
    return folder


def run(arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_there_are_blocks_and_nothing_else_between_fences():
    assert {kind for kind, _ in BLOCKS} == {"sh", "python"}
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("command", list(dict.fromkeys(COMMANDS)))
def test_command(command, copy):
    words = shlex.split(command)
    if words[0] in (
        "git",
        "cd",
        "pip",
        "pytest",
    ):  # installation and suite: .ci/run runs the README's own commands
        assert command in (ROOT / ".ci" / "run").read_text() or words[0] in ("git", "cd", "pip")
        return
    if command == "python scripts/complexity.py":
        return  # tests/paper/test_complexity.py runs it
    assert words[0] == "python", command
    arguments = words[1:]
    heavy = any(word.startswith(("data=cifar", "experiment=table")) for word in arguments)
    if arguments[0] == "train.py" and heavy:
        done = run(["scripts/status.py", *arguments[1:]], copy)
        assert done.returncode == 0 and "to do" in done.stdout, done.stderr
    elif arguments[0] == "train.py":
        shown = [word.replace("range(7)", "range(1)") for word in arguments[1:]]
        done = run(
            ["train.py", *[word for word in shown if "epochs" not in word], *SHORT[:3], SHORT[3]],
            copy,
        )
        assert done.returncode == 0 and "test top-1" in done.stdout, done.stdout + done.stderr
    elif arguments[0] == "scripts/compare.py":
        done = run(
            [word.replace("epochs=4", "epochs=1") for word in arguments] + ["model.layers=8"], copy
        )
        assert done.returncode == 0 and "mine" in done.stdout, done.stdout + done.stderr
    else:
        done = run(arguments, copy)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python(text):
    import torch

    names = {}
    exec(text, names)  # the README's own lines
    network = names["network"].eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    assert sum(type(module).__name__ == "LCM2" for module in network.modules()) == 8
