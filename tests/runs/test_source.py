"""A run knows the source of a module of the user's own: a changed one neither continues nor passes
as finished.
"""

import json
import signal
import sys

import pytest
from hydra_config import begun_state, config
from tiny import after_step, command, run

from lcm.config import compose
from lcm.config.identity import config_hash
from lcm.reporting.records import find_runs
from lcm.runs.directory import run_directory
from lcm.runs.source import SHIPPED, own_files, set_aside, source
from lcm.runs.state import RESULT as SHOWN
from lcm.runs.state import write_state

RESULT = dict.fromkeys(SHOWN, 1.0)
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


NETWORK = """from torch import nn

from own_parts import scale


class Net(nn.Sequential):
    def __init__(self, width, num_classes):
        layers = [nn.Conv2d(3, width, 3, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(width, num_classes))

    def forward(self, x):
        return scale(super().forward(x))
"""
PARTS = "def scale(x):\n    return x * 2\n"
CHANGED = PARTS.replace("2", "3")


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
    """A run with own_gate.py or own_net.py of the test, which import own_parts.py, in a process of
    its own.
    """
    files = {"own_gate.py": MODULE, "own_net.py": NETWORK, "own_parts.py": PARTS}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits come within one second
    choices = tmp_path / "choices"
    for name, text in {
        "attention/gate": "name: gate\n_target_: own_gate.Gate\nsites: every\n",
        "model/net": "name: net\nfamily: net\nimage_size: 32\n_target_: own_net.Net\nwidth: 4\n",
    }.items():
        (choices / name).parent.mkdir(parents=True)
        (choices / f"{name}.yaml").write_text(text)
    compose.use_configs(compose.CONFIGS, [choices.as_uri()])
    always = [f"hydra.searchpath=['{choices.as_uri()}']", f"runs={tmp_path}/runs"]

    def trained(*words, prepare=None):
        return run(tmp_path, tiny(*always, "schedule.epochs=1", *words), prepare)

    yield trained
    compose.use_configs(compose.CONFIGS)


def changed_parts(tmp_path):
    (tmp_path / "own_parts.py").write_text(CHANGED)
    return f"{tmp_path}/own_parts.py has changed"


def test_a_changed_module_ends_with_its_file_and_trains_anew_on_demand(train, tmp_path):
    assert (ended := train("attention=gate")).code == 0, ended.err
    (directory,) = find_runs(tmp_path / "runs")
    first = json.loads((directory / "run.json").read_text())
    assert list(first["source"]["attention"]) == ["own_gate.py", "own_parts.py"]
    assert list(first["own_source"]) == ["attention"]
    assert (directory / "source/own_gate.py").read_text() == MODULE

    (tmp_path / "own_gate.py").write_text(MODULE.replace("A gate.", "Words.") + "\n# a comment\n")
    assert "already finished" in train("attention=gate").out

    words = changed_parts(tmp_path)
    refused = train("attention=gate")
    assert refused.code == 2 and words in refused.err and "rerun=true" in refused.err

    assert (ended := train("attention=gate", "rerun=true")).code == 0, ended.err
    aside = directory.with_name(f".{directory.name}.1")
    assert json.loads((aside / "run.json").read_text()) == first
    again = json.loads((directory / "run.json").read_text())
    assert again["own_source"] != first["own_source"]
    assert again["config_hash"] == first["config_hash"]
    assert find_runs(tmp_path / "runs") == [directory]
    shown = command(tmp_path, tmp_path / "runs", script="scripts/status.py")
    assert shown.out.splitlines()[-1] == "1 run: 1 finished"


def test_a_stopped_run_goes_on_with_its_module_alone(train, tmp_path):
    stop = after_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert train("attention=gate", prepare=stop).code == 75
    words = changed_parts(tmp_path)
    refused = train("attention=gate")
    assert refused.code == 2 and words in refused.err
    (tmp_path / "own_parts.py").write_text(PARTS)
    ended = train("attention=gate")
    assert ended.code == 0 and "continuing  from epoch 1, step 2" in ended.out


def test_a_network_of_ones_own_is_known_too(train, tmp_path):
    assert (ended := train("model=net", "attention=none")).code == 0, ended.err
    (directory,) = find_runs(tmp_path / "runs")
    assert list(json.loads((directory / "run.json").read_text())["own_source"]) == ["model"]
    assert (directory / "source/own_net.py").read_text() == NETWORK
    words = changed_parts(tmp_path)
    assert words in train("model=net", "attention=none").err


def test_the_repositorys_targets_are_those_of_its_yaml_files_and_have_no_own_files():
    from lcm.config.compose import choices, load

    targets = {load(g, n).get("_target_") for g in ("attention", "model") for n in choices(g)}
    assert set(SHIPPED) == targets - {None}
    assert not any(own_files(target) for target in SHIPPED)
    assert list(source(config(attention="se"))["attention"]) == [
        "lcm/attention/layers.py",
        "lcm/attention/squeeze_excite.py",
    ]


@pytest.mark.parametrize(
    ("runs", "renamed"),
    [
        (["finished", "finished"], [0, 1]),
        (["finished", None], []),  # stopped before its second run: the first one stays
        (["finished", "stopped"], []),
        (["changed", None], [0]),
        (["changed", "finished"], [0, 1]),
        (["finished", "changed and stopped"], [1]),
        ([None, None], []),
    ],
)
def test_a_rerun_trains_all_of_a_finished_command_and_goes_on_with_a_stopped_one(
    runs, renamed, tmp_path
):
    configs = [config(seed=seed, runs=str(tmp_path), rerun=True) for seed in (0, 1)]
    for words, one in zip(runs, configs, strict=True):
        if words:
            run_directory(one).mkdir(parents=True)
            past = {} if "changed" in words else {"source": source(one)}
            state = "stopped" if "stopped" in words else "finished"
            write_state(run_directory(one), begun_state(one, state=state, result=RESULT, **past))
    set_aside(configs)
    found = [int(path.name[5]) for path in tmp_path.glob("*/*/*/.seed*.1")]
    assert sorted(found) == renamed
    assert all(config_hash(one) == config_hash(one | {"rerun": False}) for one in configs)
