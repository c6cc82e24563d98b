"""Types of values, files that extend others, and choices from a stranger's own folder."""

import os
import subprocess
import sys

import pytest
from hydra_config import composed, config
from processes import FAKE, REAL, ROOT, states, succeed, sweep

from lcm.config import compose
from lcm.config.check import check
from lcm.config.command_line import override_problems
from lcm.config.compose import choices
from lcm.config.identity import ADDED, config_hash, deviations
from lcm.errors import UserError
from lcm.runs.grid import problems

MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, eps, scales, reduction=1):
        super().__init__()
    def forward(self, x):
        return x
"""
FILES = {
    "attention/mine.yaml": "name: mine\n_target_: my_module.Mine\neps: 1e-5\nscales: [0.5, "
    "1.0]\nreduction: 0.25\nsites: every\n",
    "attention/se4.yaml": "defaults:\n  - se\nname: se4\nreduction: 4\n",
    "attention/odd.yaml": "name: other_name\n_target_: my_module.Mine\neps: 0.1\nscales: "
    "[1]\nsites: every\n",
    "attention/deep/se8.yaml": "name: se8\n_target_: lcm.attention.SqueezeExcite\nreduction: 8\n"
    "sites: every\n",
    "schedule/brief.yaml": "defaults: [short]\nname: brief\nepochs: '1'\nweight_decay: "
    "5e-4\nlearning_rate: 1\n",
    "schedule/cosine.yaml": "defaults: [brief]\nname: cosine\ndecay: cosine\n",
    "model/wide.yaml": "defaults: [resnet20]\nname: wide\nlayers: 26\n",
    "model/plain.yaml": (
        "name: plain\nfamily: plain\nimage_size: 32\n_target_: lcm.models.CifarResNet\nlayers: 8\n"
        "paper: {se: {reduction: 2}, lcm2: {reduction: 8, expand_bias: true}}\n"
    ),
    "row/a.yaml": "# @package _global_\nseed: 7\n",
}


def write_files(folder):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a stranger's choices, which are honoured while the test runs; what a command
    line adds for them.
    """
    write_files(tmp_path)
    (tmp_path / "my_module.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    compose.use_configs(compose.CONFIGS, [tmp_path.as_uri()])
    yield f"hydra.searchpath=['{tmp_path.as_uri()}']"
    compose.use_configs(compose.CONFIGS)


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("schedule.learning_rate=1", "schedule.learning_rate=1.0"),
        ("schedule.divide_by=10", "schedule.divide_by=10.0"),
        *[tuple(f"schedule.optimizer=adamw schedule.betas={b}" for b in ("[0,0.5]", "[0.0,0.5]"))],
        ("attention=mine attention.eps=1", "attention=mine attention.eps=1.0"),
        ("attention=mine attention.scales=[1,2]", "attention=mine attention.scales=[1.0,2.0]"),
        # a word of the project's own modules, which here means something else
        ("attention=mine attention.reduction=1", "attention=mine attention.reduction=1.0"),
    ],
)
def test_a_whole_number_is_the_same_value_with_and_without_a_point(words, others, own):
    here, there = (composed(own, *line.split()) for line in (words, others))
    assert config_hash(here) == config_hash(there)
    assert check(here) == check(there) == []
    assert deviations(here) == deviations(there)


@pytest.mark.parametrize("text", ["auto", "4-x", "0.5"])
def test_a_word_of_the_projects_own_modules_may_be_text(text, own, tmp_path):
    file = tmp_path / "attention/mine.yaml"
    file.write_text(file.read_text().replace("reduction: 0.25", f"reduction: '{text}'"))
    assert check(composed(own, "attention=mine")) == []


@pytest.mark.parametrize("name", choices("schedule"))
def test_a_schedule_that_is_another_under_its_own_name_may_be_named(name):
    assert override_problems([f"schedule={name}"]) == []
    assert override_problems(["data=cifar10", f"schedule={name}"]) == []


def test_a_key_that_came_later_is_in_a_hash_only_where_it_is_not_as_before():
    before = config()
    for key in ADDED.keys() - {"data.verify"}:  # which the digits do not have
        del before["schedule"][key.partition(".")[2]]
    assert config_hash(before) == config_hash(config())
    assert deviations(before) == {}
    assert config_hash(config(schedule__label_smoothing=0.0)) == config_hash(config())


# Files that extend others, and files elsewhere


def test_a_file_may_extend_another_and_a_broken_one_is_named(own, tmp_path):
    words = ["data=digits", "model=wide", "attention=none", "schedule=cosine"]
    found = composed(own, *words)
    assert found["schedule"]["weight_decay"] == 5e-4 and found["schedule"]["batch_size"] == 64
    assert found["schedule"]["decay"] == "cosine" and found["model"]["layers"] == 26
    assert check(found) == [] and deviations(found) == {}
    assert set(deviations(composed(own, *words, "schedule.decay=steps"))) == {"schedule.decay"}
    assert override_problems([own, "attention=se", "attention.reduction=4", "+row=a"]) == []
    for name in ("se4", "odd", "deep/se8"):  # also known by another name, or in a folder
        found = composed(own, f"attention={name}")
        assert problems(found) == [] and deviations(found) == {}
    (tmp_path / "attention/broken.yaml").write_text("name: broken\n  eps: [\n")
    compose.choices.cache_clear()
    with pytest.raises(UserError, match=r"attention/broken\.yaml"):
        compose.load("attention", "broken")


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


@pytest.mark.commands
def test_a_sweep_over_choices_of_ones_own_is_one_command(tmp_path):
    write_files(tmp_path / "my own")
    (tmp_path / "my_module.py").write_text(MINE)
    words = ["-m", "model=plain", "--config-dir=my own", "schedule=brief"]
    succeed(FAKE, *words, "attention=none,se,lcm2,mine", cwd=tmp_path)
    assert states(tmp_path) == {"finished": 4}
    output = succeed(ROOT / "scripts" / "status.py", *words, "attention=none,mine", cwd=tmp_path)
    assert "2 runs: 2 finished" in output
    code, output = sweep(FAKE, *words, "attention=none,gc", cwd=tmp_path)
    assert code == 2 and "gc has no sizes" in output and "Traceback" not in output


def test_the_shell_completes_choices(tmp_path):
    line = "python train.py attention="
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": "1"}
    output = succeed(REAL, "-sc", "query=bash", cwd=tmp_path, **environment)
    assert output.split() == [f"attention={name}" for name in compose.choices("attention")]


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


@pytest.mark.commands
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
