"""A script uses the `lcm` of its own checkout, whatever is installed."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from processes import ROOT

from lcm.errors import UserError
from lcm.reporting.claims import read_claims
from lcm.reporting.protocol import read_csv

SCRIPTS = [file for file in sorted((ROOT / "scripts").glob("*.py")) if file.stem != "checkout"]


def test_a_script_of_a_copy_imports_the_copy(tmp_path):
    for folder in ("lcm", "scripts", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    with open(tmp_path / "lcm/__init__.py", "a") as package:
        package.write('\nraise SystemExit("this is the copy")\n')
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, tmp_path / "scripts/status.py", "--help"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == "this is the copy", done.stdout + done.stderr


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_script_finds_its_checkout_before_the_package(file):
    imported = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module)
    own = [name for name in imported if name.partition(".")[0] in ("checkout", "lcm", "train")]
    assert own[0] == "checkout" and len(own) > 1


@pytest.mark.parametrize("read", [read_csv, lambda file: read_claims(file, None)])
def test_a_missing_file_of_the_repository_comes_back_in_its_folder(tmp_path, read):
    with pytest.raises(UserError) as refused:
        read(tmp_path / "paper.csv")
    assert f"`git checkout results/paper.csv` in {ROOT} brings" in str(refused.value)
