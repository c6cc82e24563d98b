"""A script uses the `lcm` of its own checkout, whatever is installed."""

import shutil
import subprocess
import sys

import pytest
from processes import ROOT

from lcm.errors import UserError
from lcm.reporting.claims import read_claims
from lcm.reporting.protocol import read_csv

SCRIPTS = sorted({file.name for file in (ROOT / "scripts").glob("*.py")} - {"checkout.py"})


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the checkout whose package ends whatever imports it."""
    folder = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("__pycache__")
    for name in ("lcm", "scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    shutil.copy(ROOT / "train.py", folder)
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
    with pytest.raises(UserError) as refused:
        read(tmp_path / "paper.csv")
    assert f"restore it with `git checkout results/paper.csv` in {ROOT}" in str(refused.value)
