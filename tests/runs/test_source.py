"""A run knows the source of a module of the user's own: a changed one neither continues nor passes
as finished.
"""

import re
import signal
import sys

import pytest
import torch
from hydra_config import begun_state, config
from tiny import ROOT, after_step, run

import lcm
from lcm.config import compose
from lcm.config.identity import config_hash
from lcm.errors import UserError
from lcm.reporting.records import find_runs
from lcm.runs import source as sources
from lcm.runs.directory import run_directory
from lcm.runs.source import SHIPPED, own_files, refuse_changed_source, set_aside, source
from lcm.runs.state import read_state, write_state

MODULE = '''"""A gate."""
import torch
from torch import nn

from own_parts import scale


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.order = torch.randperm(channels)
        self.register_buffer("stored", self.order)

    def forward(self, x):
        return scale(x)
'''
PARTS = "def scale(x):\n    return x * 2\n"
CHANGED = PARTS.replace("2", "3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with own_gate.py, which imports own_parts.py, and its choice attention=gate."""
    (tmp_path / "own_gate.py").write_text(MODULE)
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "choices/attention").mkdir(parents=True)
    (tmp_path / "choices/attention/gate.yaml").write_text(
        "name: gate\n_target_: own_gate.Gate\nsites: every\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits come within one second
    for name in ("own_gate", "own_parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for cached in (own_files, sources._local, sources._digest, sources._read):
        cached.cache_clear()
    return tmp_path


@pytest.fixture
def train(tiny, folder):
    """A run with attention=gate in a process of its own."""
    choices = (folder / "choices").as_uri()
    compose.use_configs(compose.CONFIGS, [choices])

    def trained(*words, prepare=None):
        always = [f"hydra.searchpath=['{choices}']", f"runs={folder}/runs", "schedule.epochs=1"]
        return run(folder, tiny(*always, "attention=gate", *words), prepare)

    yield trained
    compose.use_configs(compose.CONFIGS)


@pytest.mark.commands
def test_a_changed_module_ends_with_its_file_and_trains_anew_on_demand(train, tmp_path):
    stop = after_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert (ended := train(prepare=stop)).code == 75, ended.err
    (directory,) = find_runs(tmp_path / "runs")
    words = f"{tmp_path}/own_parts.py has changed"
    (tmp_path / "own_parts.py").write_text(CHANGED)
    refused = train()
    assert refused.code == 2 and words in refused.err
    (tmp_path / "own_parts.py").write_text(PARTS)
    ended = train()
    assert ended.code == 0 and "continuing  from epoch 1, step 2" in ended.out

    first = read_state(directory)
    assert list(first["source"]) == ["attention"] == list(first["own_source"])
    assert list(first["source"]["attention"]) == ["own_gate.py", "own_parts.py"]
    assert (directory / "source/own_gate.py").read_text() == MODULE
    (tmp_path / "own_gate.py").write_text(MODULE.replace("A gate.", "Words.") + "\n# a comment\n")
    assert "already finished" in train().out

    (tmp_path / "own_parts.py").write_text(CHANGED)
    refused = train()
    assert refused.code == 2 and words in refused.err and "rerun=true" in refused.err
    sources._digest.cache_clear(), sources._read.cache_clear()  # as in another process
    with pytest.raises(UserError, match=f"{words} since {directory} was trained"):
        lcm.load_run(directory, config_dir=tmp_path / "choices")
    refused = train("rerun=true", "device=cuda")  # a run that does not begin hides no other
    assert refused.code == 2 and "again" in refused.out and read_state(directory) == first
    assert (ended := train("rerun=true")).code == 0, ended.err
    assert read_state(directory.with_name(f".{directory.name}.1")) == first
    assert read_state(directory)["own_source"] != first["own_source"]
    network, _ = lcm.load_run(directory, config_dir=tmp_path / "choices")  # built with its seed
    assert torch.equal(network.stage1[0].site.order, network.stage1[0].site.stored)
    (tmp_path / "own_gate.py").unlink()
    del sys.modules["own_gate"]
    own_files.cache_clear()
    with pytest.raises(UserError, match=r"own_gate.*PYTHONPATH"):
        lcm.load_run(directory, config_dir=tmp_path / "choices")
    assert find_runs(tmp_path / "runs") == [directory]


def own_config(group="attention", **changes):
    """The config of a run on own_gate.Gate as its attention, or its network."""
    found = config(**changes)
    found[group] = found[group] | {"_target_": "own_gate.Gate"}
    return found


@pytest.mark.parametrize("group", ["attention", "model"])
def test_a_run_json_of_any_version_is_compared_in_what_is_own(group, folder):
    """Earlier ones have the repository's files too, and the first ones none."""
    here = own_config(group, runs=str(folder / "runs"))
    then = {group: source(here)[group] | {"lcm/complexity.py": "another"}, "data": {}}
    wrong = {group: then[group] | {"own_parts.py": "another"}}
    finished = begun_state(here, state="finished")
    for past, later in ((then, []), ({}, []), (wrong, [then, {}])):
        continued = [{"source": part} for part in later]
        refuse_changed_source(here, finished | {"source": past, "continued": continued})
    changed = finished | {"source": wrong}
    refuse_changed_source(here, changed | {"state": "stopped"})  # it has no checkpoint yet
    with pytest.raises(UserError, match=r"own_parts\.py has changed"):
        refuse_changed_source(here, changed)
    there = here | {group: here[group] | {"_target_": "own_gate.scale"}}
    assert sources.keep_own(here, folder) != sources.keep_own(there, folder)  # two arms
    with pytest.raises(UserError, match=r"_target_ own_gate\.Gate has changed"):
        refuse_changed_source(there, finished)


def test_what_is_own_follows_from_the_imports_alone(folder):
    """Relative ones, in functions, of packages with and without __init__.py; a folder of an
    installed package's name is none.
    """
    (folder / "bag/inner").mkdir(parents=True)
    (folder / "wandb").mkdir()
    (folder / "bag/__init__.py").write_text("z = 1\n")
    (folder / "bag/gate.py").write_text(
        "import numpy\nimport own_gate as g\nfrom lcm.attention import SqueezeExcite\n"
        "from lcm.attention import layers\nfrom . import near\nclass Gate: pass\n"
    )
    (folder / "bag/near.py").write_text("def f():\n  import wandb\n  from .inner.far import y\n")
    (folder / "bag/inner/far.py").write_text("y = 1\n")
    bag = [f"bag/{name}.py" for name in ("__init__", "gate", "inner/far", "near")]
    assert list(own_files("bag.gate.Gate")) == [*bag, "own_gate.py", "own_parts.py"]


def test_a_file_in_the_package_is_own_where_the_repository_does_not_import_it(monkeypatch):
    """The repository's part is found by its imports; here one of its files is no part of it."""
    monkeypatch.setattr(
        sources, "SHIPPED", [name for name in SHIPPED if "imagenet" not in str(name)]
    )
    assert list(own_files.__wrapped__("lcm.models.imagenet.resnet50")) == ["lcm/models/imagenet.py"]


def test_the_repositorys_targets_are_those_of_its_yaml_files_and_have_no_own_files():
    files = [f for group in compose.GROUPS[:3] for f in (ROOT / "configs" / group).iterdir()]
    found = ((re.findall(r"^_target_: (\S+)", f.read_text(), re.M), f.stem) for f in files)
    shipped = sorted((name, str(target)) for target, names in SHIPPED.items() for name in names)
    assert shipped == sorted((name, target[0] if target else "None") for target, name in found)
    assert source(config(attention="se")) == {}


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
        (["finished and gone", "finished"], [1]),  # another process renames it at this moment
    ],
)
def test_a_rerun_trains_all_of_a_finished_command_and_goes_on_with_a_stopped_one(
    runs, renamed, folder, monkeypatch
):
    configs = [own_config(seed=seed, runs=str(folder), rerun=True) for seed in (0, 1)]
    for words, one in zip(runs, configs, strict=True):
        if words:
            run_directory(one).mkdir(parents=True)
            past = {"attention": {}} if "changed" in words else source(one)
            state = "stopped" if "stopped" in words else "finished"
            write_state(run_directory(one), begun_state(one, state=state, source=past))
    monkeypatch.setattr(
        sources,
        "refuse_another_config",
        lambda found, state, one: (
            "gone" in str(runs[one["seed"]]) and (found / "run.json").unlink()
        ),
    )
    set_aside(configs)
    assert sorted(int(path.name[5]) for path in folder.glob("*/*/*/.seed*.1")) == renamed
    assert all(config_hash(one) == config_hash(one | {"rerun": False}) for one in configs)
