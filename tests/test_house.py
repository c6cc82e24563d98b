"""The house: imports go only downwards, no circles, and nothing is too long to read."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lcm.errors import UserError
from lcm.reporting.claims import read_claims
from lcm.reporting.protocol import read_csv

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
    text = "\n".join(file.read_text(encoding="utf-8") for file in PROGRAM)
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
    imported |= {"tensorboard"} if "from torch.utils.tensorboard" in text else set()
    names = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
    assert {module.get(name, name) for name in names} <= imported


def test_documents_name_tests_that_exist():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results" / "README.md"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in documents)
    named = set(re.findall(r"(?:`|::)(test_\w+)…?`", text))
    code = "\n".join(file.read_text(encoding="utf-8") for file in TESTS)
    assert len(named) > 5 and not [name for name in named if f"def {name}" not in code]


# The scripts use the `lcm` of their own checkout, whatever is installed

SCRIPTS = sorted({file.name for file in (ROOT / "scripts").glob("*.py")} - {"checkout.py"})


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the scripts beside a package that ends whatever imports it."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "train.py", folder)
    (folder / "lcm").mkdir()
    (folder / "lcm/__init__.py").write_text('raise SystemExit("this is the copy")\n')
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_of_a_copy_imports_the_copy(script, copy, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, copy / "scripts" / script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "this is the copy", done.stdout + done.stderr


@pytest.mark.parametrize("read", [read_csv, lambda file: read_claims(file, None)])
def test_a_missing_file_of_the_repository_comes_back_in_its_folder(tmp_path, read):
    with pytest.raises(UserError, match=f"`git checkout results/paper.csv` in {ROOT}"):
        read(tmp_path / "paper.csv")
