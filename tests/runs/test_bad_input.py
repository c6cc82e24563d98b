"""Bad input through the real command lines: exit code 2, one message (what, where, what to do),
never a traceback.

tests/runs/bad_inputs.md has the command lines and their messages; `UPDATE=1 pytest -m commands` and
this file rewrites the messages, also those of new rows, which may be empty. A row may name, in
brackets, what is arranged before. Each command is a process of its own, forked from this one after
its imports; two are started as a user does.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hydra_config import begun_state, composed, config
from tiny import ROOT, command, run

from lcm.config import compose
from lcm.runs.state import write_state
from lcm.training import device
from lcm.training.state import Sums

pytestmark = pytest.mark.commands

TABLE = ROOT / "tests" / "runs" / "bad_inputs.md"
ROW = re.compile(r"(\| `(.+?)`(?: \((.+?)\))? \|) (.*?) ?\|")
ROWS = [match.groups() for line in TABLE.read_text().splitlines() if (match := ROW.fullmatch(line))]


class Spoilt(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x.exp().mul_(2)  # the backward pass needs what exp returned


def finished_run(folder, **damage):
    """A run of seed 0 in {folder}/run; files of it replaced by `damage`."""
    (folder / "run").mkdir()
    write_state(folder / "run", begun_state(config(), state="stopped"))
    for name, content in damage.items():
        (folder / "run" / name.replace("_", ".")).write_bytes(content)


def no_gpu(folder):
    torch.cuda.is_available = lambda: False
    torch.version.cuda = "12.4"


def no_bf16(folder):
    device.cpu_info = lambda key: {"model name": "A Processor"}.get(key, "")


def own(**files):
    """YAML files of one's own in {folder}/own: group__name="..."."""

    def write(folder):
        for name, text in files.items():
            file = folder / "own" / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="latin-1")

    return write


ARRANGED = {  # called in the command's process, with its folder
    None: lambda folder: None,
    "without a GPU": no_gpu,
    "on a processor without it": no_bf16,
    "its file has no target": own(attention__mine="name: mine\nsites: every\n"),
    "its target is nowhere": own(attention__mine="name: mine\n_target_: no_such.Mine\n"),
    "a tab in its file": own(attention__mine="\tname: mine\n"),
    "a file of one's own": own(attention__se="name: se\n_target_: no_such.Mine\n"),
    "not UTF-8": own(schedule__mine="# caf\xe9\nname: mine\n"),
    "no step can be made": own(attention__mine="name: mine\n_target_: test_bad_input.Spoilt\n"),
    "a list": own(attention__mine="[name, mine]\n"),
    "a name with a blank": own(attention__mine="name: mine v2\n_target_: lcm.attention.SimAM\n"),
    "too wide for a stage": own(
        attention__wide="defaults: [se]\nname: wide\nreduction: 64\nsites: every\n"
    ),
    "its file lacks keys": own(data__mine="name: mine\n_target_: lcm.data.Digits\n"),
    "a word that train.py does not read": own(
        schedule__mixed="defaults: [digits]\nname: mixed\nmixup: 0.2\n"
    ),
    "what it extends comes last": own(
        schedule__fast="defaults: [_self_, digits]\nname: fast\nepochs: 2\n"
    ),
    "sizes that nothing reads": own(
        model__sized="defaults: [resnet20]\nname: sized\npaper: {mine: {reduction: 5}}\n",
        attention__mine="name: mine\n_target_: lcm.attention.SqueezeExcite\nreduction: 4\n",
    ),
    "a network for no size": own(
        model__mine="defaults: [resnet20]\nname: mine\nimage_size: null\n"
    ),
    "no schedule of its name": own(data__pets="defaults: [folder]\nname: pets\nroot: there\n"),
    "its file has one key": own(schedule__bare="name: bare\nepochs: 1\n"),
    "none other has its size": own(
        model__large="name: large\nfamily: large\nimage_size: 64\n_target_: torch.nn.Identity\n",
        data__mine="name: mine\nimage_size: 48\nnum_classes: 3\n_target_: lcm.data.Digits\n",
    ),
    "a target that is nowhere": own(
        data__mine="name: mine\nimage_size: 32\nnum_classes: 3\n_target_: no_such.Mine\n"
    ),
    "a target that Hydra refuses": own(
        data__mine="name: mine\nimage_size: 32\nnum_classes: 3\n_target_: os.kill\n"
    ),
    "a grid without -m": own(
        experiment__mine="# @package _global_\nhydra: {sweeper: {params: {seed: range(2)}}}\n"
    ),
    "its first line is missing": own(experiment__mine="schedule: {epochs: 2}\n"),
    "its first line is missing, with defaults": own(
        experiment__mine="defaults: [override /attention: se]\n"
    ),
    "a name for a group's keys": own(experiment__mine="# @package _global_\nmodel: resnet32\n"),
    "a file": lambda folder: (folder / "file").touch(),
    "where a run of seed 0 is stored": finished_run,
    "run.json damaged": lambda folder: finished_run(folder, run_json=b'{"state": "fini'),
    "its checkpoint damaged": lambda folder: finished_run(folder, checkpoint_pt=b"x"),
}


def shown(text, folder):
    """A message as in the table: without what differs between machines and versions of Python."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), ".")
    text = re.sub(r"\(choose from [^)]*\)", lambda choices: choices[0].replace("'", ""), text)
    text = re.sub(r"seed\d-[0-9a-f]{8}", "seed0-HASH", text)
    return "<br>".join(part.strip().replace("|", "\\|") for part in text.strip().splitlines())


@pytest.fixture(scope="module")
def imported():
    """Hydra is imported here, its parser has seen a command line, and the YAML files are read: the
    commands are forked from this process. Those with --config-dir read the files again.
    """
    composed("seed=1")
    compose.settings()
    for group in compose.GROUPS:
        compose.load_all(group)


@pytest.mark.parametrize(
    "head, line, arranged, message", ROWS, ids=[f"{line} {note or ''}" for _, line, note, _ in ROWS]
)
def test_one_message_and_exit_code_2(head, line, arranged, message, imported, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    script, *arguments = line.replace("FOLDER", str(folder)).split()
    if script == "train.py" and "runs=" not in line and "run_directory=" not in line:
        arguments.append(f"runs={folder}/runs")
    ended = command(tmp_path, *arguments, script=script, prepare=lambda: ARRANGED[arranged](folder))
    assert ended.code == 2, ended
    assert ended.err.startswith(("error: ", "usage: ")) and ended.err.count("error: ") == 1
    assert not any(words in ended.err for words in ("Traceback", 'File "', "HYDRA_FULL_ERROR"))
    assert "-m" not in arguments or not any(folder.iterdir())  # of a sweep nothing was started
    said = shown(ended.err[ended.err.index("error: ") :], folder)
    if os.environ.get("UPDATE") == "1":
        TABLE.write_text(TABLE.read_text().replace(f"{head} {message} |", f"{head} {said} |"))
    else:
        assert said == message


@pytest.mark.parametrize(
    "arguments", [["train.py", "seed=${nope}"], ["scripts/collect.py", "/nowhere/runs"]]
)
def test_as_a_user_starts_it(arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_with_debug_the_traceback_is_shown(imported, tmp_path):
    ended = command(tmp_path, "run_directory=/proc/nope", "debug=true")
    assert ended.code == 2 and "Traceback (most recent call last)" in ended.err


def test_an_error_of_the_program_is_a_failure_with_its_traceback(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Sums, "means", lambda *args: 1 / 0)
    ended = run(tmp_path, tiny(f"runs={tmp_path}"))
    assert ended.code == 1 and "Traceback" in ended.err
    assert ended.err.endswith("error: ZeroDivisionError: division by zero\n")
    (file,) = tmp_path.rglob("run.json")
    assert json.loads(file.read_text())["state"] == "failed"
