"""The house: imports go only downwards, no circles, and nothing is too long to read."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

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


def test_scripts_use_the_lcm_of_their_own_checkout_whatever_is_installed(tmp_path, monkeypatch):
    """The package beside a copy of the scripts ends whatever imports it; `checkout` finds it, and
    each script imports that before any of it."""
    for file in {*(ROOT / "scripts").glob("*.py")} - {ROOT / "scripts" / "checkout.py"}:
        own = re.search(r"^(?:import|from) (checkout|lcm|train)\b", file.read_text(), re.MULTILINE)
        assert own[1] == "checkout", file
    script = shutil.copytree(ROOT / "scripts", tmp_path / "scripts") / "collect.py"
    (tmp_path / "lcm").mkdir()
    (tmp_path / "lcm/__init__.py").write_text('raise SystemExit("this is the copy")\n')
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "this is the copy", done.stdout + done.stderr
