"""A run knows the source of a module of the user's own: a changed one neither continues nor passes as finished."""

import json
import os
import subprocess
import sys

import pytest
from hydra_config import config
from tiny import ROOT

from lcm.config.identity import config_hash
from lcm.reporting.records import find_runs
from lcm.runs.source import SHIPPED, own_files, source

MODULE = '''"""A gate."""
from torch import nn

from own_parts import scale


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return scale(x)
'''


@pytest.fixture
def train(tmp_path):
    """`python train.py attention=gate` in the tiny setting, with own_gate.py and own_parts.py of the test."""
    (tmp_path / "own_gate.py").write_text(MODULE)
    (tmp_path / "own_parts.py").write_text("def scale(x):\n    return x * 2\n")
    program = (
        "import sys, tiny; configs = tiny.use(sys.argv[1]); (configs / 'attention/gate.yaml').write_text("
        "'name: gate\\n_target_: own_gate.Gate\\nsites: every\\n'); from train import train\n"
        "from lcm import cli\n"
        "try: train(tiny.compose('attention=gate', *sys.argv[2:]))\n"
        "except Exception as error: cli.exit_with_message(error)"
    )
    paths = [tmp_path, ROOT, ROOT / "tests/helpers"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    times = iter(range(9))

    def run(*overrides):
        command = [sys.executable, "-c", program, tmp_path / f"use{next(times)}"]
        command += ["schedule.epochs=1", f"runs={tmp_path}/runs", *overrides]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_a_changed_module_ends_with_its_file_and_trains_anew_on_demand(train, tmp_path):
    assert (ended := train()).returncode == 0, ended.stderr
    (directory,) = find_runs(tmp_path / "runs")
    first = json.loads((directory / "run.json").read_text())
    assert list(first["source"]["attention"]) == ["own_gate.py", "own_parts.py"]
    assert list(first["own_source"]) == ["attention"]
    assert (directory / "source/own_gate.py").read_text() == MODULE

    (tmp_path / "own_gate.py").write_text(MODULE.replace("A gate.", "Words.") + "\n# a comment\n")
    assert "already finished" in train().stdout

    (tmp_path / "own_parts.py").write_text("def scale(x):\n    return x * 3\n")
    refused = train()
    assert refused.returncode == 2 and f"{tmp_path}/own_parts.py has changed" in refused.stderr
    assert "rerun=true" in refused.stderr

    assert (ended := train("rerun=true")).returncode == 0, ended.stderr
    aside = directory.with_name(f".{directory.name}.1")
    assert json.loads((aside / "run.json").read_text()) == first
    assert find_runs(tmp_path / "runs") == [directory]
    again = json.loads((directory / "run.json").read_text())
    assert again["own_source"] != first["own_source"]
    assert again["config_hash"] == first["config_hash"]


def test_the_repositorys_targets_are_those_of_its_yaml_files_and_have_no_own_files():
    from lcm.config.compose import choices, load

    targets = {load(g, n).get("_target_") for g in ("attention", "model") for n in choices(g)}
    assert set(SHIPPED) == targets - {None}
    assert not any(own_files(target) for target in SHIPPED)
    assert list(source(config(attention="se"))["attention"]) == [
        "lcm/attention/squeeze_excite.py",
        "lcm/attention/vector.py",
    ]


def test_rerun_is_no_part_of_the_identity():
    assert config_hash(config(rerun=True)) == config_hash(config())
