"""Types of values, files that extend others, and choices from a stranger's own folder."""

import os
import subprocess
import sys

import pytest
from hydra_config import composed, config
from processes import FAKE, REAL, ROOT, states, succeed, sweep

from lcm.config import compose
from lcm.config.check import check, typed
from lcm.config.command_line import override_problems
from lcm.config.identity import ADDED, config_hash, deviations
from lcm.data import build_data
from lcm.errors import UserError, in_words
from lcm.runs.grid import problems

MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, eps, scales):
        super().__init__()
    def forward(self, x):
        return x
"""
FILES = {
    "attention/mine.yaml": "name: mine\n_target_: my_module.Mine\neps: 1e-5\nscales: [0.5, "
    "1.0]\nsites: every\n",
    "attention/own/se4.yaml": "defaults:\n  - /attention/se@_here_\nname: se4\nreduction: 4\n",
    "attention/odd.yaml": "name: other_name\n_target_: my_module.Mine\neps: 0.1\nscales: "
    "[1]\nsites: every\n",
    "attention/broken.yaml": "name: broken\n  eps: [\n",
    "schedule/brief.yaml": "defaults: [short]\nname: brief\nepochs: 1\nweight_decay: "
    "5e-4\nlearning_rate: 1\n",
    "schedule/bare.yaml": "name: bare\nepochs: 1\n",
    "schedule/cosine.yaml": "defaults: [brief]\nname: cosine\ndecay: cosine\n",
    "model/wide.yaml": "defaults: [resnet20]\nname: wide\nlayers: 26\n",
    "model/plain.yaml": (
        "name: plain\nfamily: plain\nimage_size: 32\n_target_: lcm.models.CifarResNet\nlayers: 8\n"
        "paper: {se: {reduction: 2}, lcm2: {reduction: 8, expand_bias: true}}\n"
    ),
    "model/large.yaml": "name: large\nfamily: large\nimage_size: 64\n_target_: torch.nn.Identity\n",
    "data/middle.yaml": "name: middle\nimage_size: 48\nnum_classes: 3\n_target_: lcm.data.Digits\n",
    "row/a.yaml": "# @package _global_\nseed: 7\n",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a stranger's choices, which are honoured while the test runs; what a command
    line adds for them.
    """
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_module.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    compose.use_configs(compose.CONFIGS, [tmp_path.as_uri()])
    yield f"hydra.searchpath=['{tmp_path.as_uri()}']"
    compose.use_configs(compose.CONFIGS)


# One type


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("schedule.learning_rate=1", "schedule.learning_rate=1.0"),
        ("schedule.divide_by=10", "schedule.divide_by=10.0"),
        ("schedule.momentum=0", "schedule.momentum=0.0"),
        ("schedule.betas=[0,0.5]", "schedule.betas=[0.0,0.5]"),
        ("attention=mine attention.eps=1", "attention=mine attention.eps=1.0"),
        ("attention=mine attention.scales=[1,2]", "attention=mine attention.scales=[1.0,2.0]"),
        ("threads=3 seed=4", "threads='${oc.env:OWN_THREADS}' seed='${oc.env:OWN_SEED}'"),
        ("compile=true", "compile='${oc.env:OWN_SWITCH}'"),
        ("schedule.weight_decay=5e-4", "schedule.weight_decay='${oc.env:OWN_DECAY}'"),
    ],
)
def test_a_value_has_one_type_however_it_is_written(words, others, own, monkeypatch):
    for name, text in {"THREADS": "3", "SEED": "4", "SWITCH": "true", "DECAY": "5e-4"}.items():
        monkeypatch.setenv(f"OWN_{name}", text)
    here = composed(own, *words.split())
    there = composed(own, *[text.replace("'", "") for text in others.split()])
    assert repr(here) == repr(there) and config_hash(here) == config_hash(there)
    assert check(here) == []


def test_floats_are_floats_where_they_are_declared_and_nowhere_else(own):
    found = composed(own, "attention=mine", "schedule=brief", "schedule.divide_at=[]")
    assert type(found["schedule"]["learning_rate"]) is float
    assert type(found["schedule"]["epochs"]) is int
    assert found["attention"]["eps"] == 1e-5 and found["schedule"]["weight_decay"] == 5e-4
    assert deviations(composed(own, "attention=mine", "schedule=brief")) == {}
    assert typed(config(seed="x", runs="7")) == config(seed="x", runs="7")
    assert typed({"model": None}) == {"model": None}


def test_a_key_that_came_later_is_in_a_hash_only_where_it_is_not_as_before():
    before = config()
    for key in ADDED:
        del before["schedule"][key.partition(".")[2]]
    assert config_hash(before) == config_hash(config())
    assert deviations(before) == {}
    assert config_hash(config(schedule__decay="cosine")) != config_hash(config())
    assert config_hash(config(schedule__label_smoothing=0.0)) == config_hash(config())


# Files that extend others, and files elsewhere


def test_a_file_may_extend_another_and_a_broken_one_stands_alone(own):
    names = {"data": "digits", "model": "wide", "attention": "none", "schedule": "cosine"}
    found = composed(own, *(f"{group}={name}" for group, name in names.items()))
    assert found["schedule"]["weight_decay"] == 5e-4 and found["schedule"]["batch_size"] == 64
    assert found["schedule"]["decay"] == "cosine" and found["model"]["layers"] == 26
    assert check(found) == [] and deviations(found) == {}
    assert "decay" not in deviations(found) and config_hash(found) != config_hash(config())
    assert deviations(
        composed(own, *(f"{g}={n}" for g, n in names.items()), "schedule.decay=steps")
    )
    assert override_problems([own, "attention=se", "attention.reduction=4", "seed=1"]) == []
    with pytest.raises(UserError, match="broken"):
        compose.load("attention", "broken")


def test_a_choice_may_lie_in_a_folder_and_call_itself_otherwise(own):
    found = composed(own, "attention=own/se4")
    assert found["attention"]["name"] == "se4" and found["attention"]["reduction"] == 4
    assert problems(found) == [] and deviations(found) == {}
    assert problems(composed(own, "attention=odd")) == []
    assert override_problems([own, "attention=own/se4", "+row=a"]) == []
    (problem,) = override_problems([own, "attention=own/se5"])
    assert problem.endswith("nearest: own/se4")


def test_a_backbone_may_bring_its_sizes_for_the_papers_attentions(own):
    se, lcm2 = (composed(own, "model=plain", f"attention={name}") for name in ("se", "lcm2"))
    assert se["attention"]["reduction"] == 2
    assert (lcm2["attention"]["reduction"], lcm2["attention"]["expand_bias"]) == (8, True)
    for found in (se, lcm2, composed(own, "model=plain", "attention=none")):
        assert problems(found) == [] and deviations(found) == {}
    bare = composed(own, "model=plain", "attention=se")
    bare["model"].pop("paper")
    assert config_hash(bare) == config_hash(se)
    assert deviations(composed(own, "model=plain", "attention=se", "attention.reduction=4")) == {
        "attention.reduction": 4
    }
    with pytest.raises(UserError, match=r"attention=gc has no sizes.*paper: \{gc: \{reduction: "):
        composed(own, "model=plain", "attention=gc")


slow = pytest.mark.slow  # two places, one way to look there


@pytest.mark.parametrize(
    "place", ["--config-dir=my own", pytest.param("hydra.searchpath=['file://{own}']", marks=slow)]
)
def test_a_sweep_over_choices_of_ones_own_is_one_command(place, tmp_path):
    for name, text in FILES.items():
        (tmp_path / "my own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my own" / name).write_text(text)
    (tmp_path / "my_module.py").write_text(MINE)
    words = ["-m", place.format(own=tmp_path / "my own"), "model=plain", "schedule=brief"]
    succeed(FAKE, *words, "attention=none,se,lcm2,mine,own/se4", cwd=tmp_path)
    assert states(tmp_path) == {"finished": 5}
    status, paths = ROOT / "scripts" / "status.py", f"{tmp_path}:{ROOT}"
    output = succeed(status, *words, "attention=none,mine", cwd=tmp_path, PYTHONPATH=paths)
    assert "2 runs: 2 finished" in output
    code, output = sweep(FAKE, *words, "attention=none,gc,broken", cwd=tmp_path)
    assert code == 2 and "gc has no sizes" in output and "Traceback" not in output
    assert "attention/broken.yaml" in output


def test_a_file_cannot_move_a_sweep_elsewhere_either(tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "moved.yaml").write_text(
        "# @package _global_\nhydra: {job: {chdir: true}, mode: MULTIRUN}\n"
    )
    words = ["--config-dir=own", "experiment=moved", "seed=0,1"]
    code, output = sweep(FAKE, *words, cwd=tmp_path)
    assert code == 2 and "hydra.job.chdir: runs keep the working directory" in output, output
    assert {path.name for path in tmp_path.iterdir()} == {"own"}


def test_the_shell_completes_choices(tmp_path):
    line = "python train.py attention="
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "1"}
    output = succeed(REAL, "-sc", "query=bash", cwd=tmp_path, **environment)
    assert output.split() == [f"attention={name}" for name in compose.choices("attention")]


def test_a_module_that_wants_its_input_contiguous_is_told_both_ways():
    torch = pytest.importorskip("torch")
    image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError) as error:
        image.view(2, -1)
    assert in_words(error.value).endswith("Or take channels_last=false.")
    assert "channels_last" not in in_words(RuntimeError("another"))


def test_a_data_set_that_is_not_there_is_bad_input():
    with pytest.raises(UserError, match=r"data=mine: .*no_such_module"):
        build_data({"name": "mine", "_target_": "no_such_module.Mine"})
    with pytest.raises(UserError, match="data=mine: "):  # Hydra refuses to call it
        build_data({"name": "mine", "_target_": "os.kill"})


def test_a_schedule_that_lacks_a_key_is_told_where_to_have_it_from(own):
    found = composed(own, "schedule=bare")
    (problem,) = check(found)
    assert "schedule=bare has no batch_size, " in problem and "`defaults: [cifar]`" in problem


def test_a_network_without_a_data_set_of_its_size(own):
    found = composed(own, "model=large", "attention=none", "data=middle", "schedule=cifar")
    (problem,) = check(found)
    assert problem.endswith("no file in configs/ fits either of them")


# Inside a program of somebody else's


PROGRAM = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.version import getbase
import lcm

def state():
    own = GlobalHydra.instance()
    return own, own.hydra, JobRuntime.instance().get("name"), getbase()

@hydra.main(version_base="1.2", config_path="conf", config_name="app")
def main(cfg):
    before = state()
    network = lcm.build_network("resnet20", "lcm2", layers=8)
    after = state()
    assert all(a is b or a == b for a, b in zip(before, after)), (before, after)
    assert hydra.compose("app", ["learning_rate=2"]).learning_rate == 2
    print("parameters", lcm.count(network, 32).params)

main()
"""


def test_build_network_works_inside_another_program_of_hydras(tmp_path):
    (tmp_path / "conf" / "attention").mkdir(parents=True)
    (tmp_path / "conf" / "app.yaml").write_text("defaults: [{attention: lcm2}]\nlearning_rate: 1\n")
    (tmp_path / "conf" / "attention" / "lcm2.yaml").write_text("something: else\n")
    (tmp_path / "app.py").write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, "app.py", "learning_rate=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("parameters ")
