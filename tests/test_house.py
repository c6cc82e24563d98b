"""The house: imports go only downwards, no circles, and nothing is too long to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [
    ROOT / "train.py",
    *sorted((ROOT / "lcm").rglob("*.py")),
    *sorted((ROOT / "scripts").rglob("*.py")),
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_imports_keep_the_contracts_of_pyproject():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_and_no_function_is_too_long():
    found = {}
    for file in PROGRAM + TESTS:
        text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
        found[name] = len(text.splitlines()), 140 if name == "train.py" else 350
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[f"{name}: {node.name}"] = node.end_lineno - node.lineno + 1, 60
    assert not {name: lines for name, (lines, limit) in found.items() if lines > limit}


def test_every_dependency_is_used_by_the_package():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = {"hydra-core": "hydra", "pillow": "PIL", "scikit-learn": "sklearn"}
    imported = set()
    for file in PROGRAM:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {
                    node.module.partition(".")[0],
                    node.module.replace("torch.utils.tensorboard", "tensorboard"),
                }
    for line in project["dependencies"]:
        name = line.partition(">")[0].partition("=")[0].partition("<")[0].strip()
        assert module.get(name, name) in imported, name
