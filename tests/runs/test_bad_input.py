"""Bad input through the real command lines: exit code 2, one message (what, where, what to do), never a traceback.

The messages are kept in tests/runs/bad_inputs.md, which this test writes anew with UPDATE=1 in the environment and compares with
otherwise. Each command is a process of its own, forked from this one after its imports; four are started as a user does.
"""

import gzip
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny import ROOT, command

TABLE = ROOT / "tests" / "runs" / "bad_inputs.md"


class Case(NamedTuple):
    """A command line ({folder} stands for a temporary one), words of its message, and what to arrange before it."""

    line: str
    words: str
    arrange: object = None  # called with the folder, before the command
    prepare: object = None  # called in the command's process
    where: str = ""  # what a table of messages has to say about `arrange` or `prepare`


def finished_run(folder, changes=None, **damage):
    """A run directory {folder}/run of the config that `changes` (overrides) compose; files of it replaced by `damage`."""
    from hydra_config import composed
    from test_run import state_of

    from lcm.runs.state import write_state

    config = composed(*(changes or []))
    (folder / "run").mkdir()
    write_state(folder / "run", state_of(config, state="stopped"))
    for name, content in damage.items():
        (folder / "run" / name.replace("_", ".")).write_bytes(content)


def damaged_run_json(folder):
    finished_run(folder, run_json=b'{"state": "fini')


def damaged_checkpoint(folder):
    finished_run(folder, checkpoint_pt=b"x")


def damaged_digits(folder):
    (folder / "digits.csv.gz").write_bytes(b"\x1f\x8bnot")


def short_digits(folder):
    """scikit-learn's own file without its last line."""
    import sklearn

    text = gzip.decompress((Path(sklearn.__file__).parent / "datasets/data/digits.csv.gz").read_bytes())
    (folder / "digits.csv.gz").write_bytes(gzip.compress(text[: text.rstrip().rindex(b"\n") + 1]))


def other_archive(folder):
    (folder / "cifar-10-python.tar.gz").write_bytes(b"x" * 99)


def cifar(folder, content):
    """An unpacked CIFAR-10 whose files all have this content."""
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / "cifar-10-batches-py" / name).write_bytes(content)


def malicious_cifar(folder):
    cifar(folder, f"cos\nsystem\n(S'touch {folder}/ran'\ntR.".encode())


def no_gpu():
    torch.cuda.is_available = lambda: False
    torch.version.cuda = "12.4"


def no_bf16():
    from lcm.training import device

    device.cpu_info = lambda key: {"model name": "A Processor"}.get(key, "")


def little_memory():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)


CASES = [
    # keys
    Case("seeed=1", "seeed=1: no such key; nearest: seed"),
    Case("schedule.epoch=3", "nearest: schedule.epochs"),
    Case("+typo=1", "+typo=1: no such key"),
    Case("+seed=1", "seed has a value already; write seed=1"),
    Case("~seed", "a key cannot be removed; give seed a value"),
    Case("lr=0.1 batch_size=32 sede=1", "lr=0.1: no such key; python train.py --help lists them all"),
    Case("attention=none attention.reduction=4", "attention.reduction: this combination has no such key"),
    Case("checkpoint=3", "checkpoint: no such key for these choices; nearest: checkpoint.every"),
    Case("model._target_=os.system", "must be lcm.models.CifarResNet (a fact of model, not a choice)"),
    Case("data.num_classes=5", "must be 10 (a fact of data, not a choice)"),
    Case("data.name=cifar10", "the name cannot be changed by itself; write data=cifar10"),
    # the form of an override
    Case("seed", "seed: not an override of the form key=value"),
    Case("data.root=/données", "a value with special characters takes two pairs of quotes"),
    Case("seed=0,1", "several values are a sweep, one run each; add -m"),
    Case("+attention@model=se", "packages are not supported; write attention=se"),
    Case("--sweep", "unrecognized arguments: --sweep"),
    # groups
    Case("model=resnet21", "no such model; choose from densenet100,"),
    Case("attention=lcm3", "nearest: lcm2"),
    Case("attention=null", "attention=null: no such attention"),
    Case("data=cifar11", "choose from cifar10, cifar100, digits, mini_imagenet; nearest: cifar10"),
    Case("experiment=table9", "no such experiment; choose from quickstart, table1,"),
    Case("hydra/launcher=clustr", "choose from basic,"),
    Case("hydra.nope=3", "Could not override 'hydra.nope'"),
    # types and ranges
    Case("schedule.epochs=0 schedule.batch_size=1", "schedule.batch_size=1: must be a whole number >= 2"),
    Case("schedule.divide_at=[150,225]", "must be a rising list of shares of the epochs between 0 and 1"),
    Case("precision=fp16", "must be one of fp32, tf32, bf16"),
    Case("threads=0", "must be auto or a whole number >= 1"),
    Case("checkpoint.every=often", 'must be epoch, "500 steps" or "10 minutes"'),
    Case("attention.sites=some", "must be every, {stages: [2, 3]} or {last_of_stage: 2}"),
    Case("runs=", "must be a path"),
    Case("seed=${seeed}", "Interpolation key 'seeed' not found"),
    Case("runs=${oc.env:NO_SUCH_VARIABLE}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
    # pairs that do not fit
    Case("model=resnet50", "model=resnet50 is for 224x224 images, data=digits has 32x32: take model=resnet50_cifar,"),
    Case("data=mini_imagenet", "data=mini_imagenet has 224x224: take model=resnet50, or data="),
    Case("model.layers=21", "must be 6n + 2; nearest: 20 or 26"),
    Case("attention.reduction=64", "larger than the 16 channels it divides: choose at most 16"),
    Case("attention.sites={stages:[4]}", "there is no free site in stage 4: the stages are 1, 2, 3"),
    # sweeps, all of it before the first run
    Case("-m seed=0,x attention=se,lcm2", "in 2 of 4 runs"),
    Case("-m attention=none,se attention.reduction=32", "in 1 of 2 runs: attention=se"),
    Case("-m seed=0,1 run_directory={folder}/run", "run_directory names one directory for 2 runs"),
    # the machine
    Case("device=cuda", "torch finds no usable NVIDIA GPU or driver; take device=cpu", None, no_gpu, "without a GPU"),
    Case("precision=tf32 device=cpu", "only NVIDIA GPUs from Ampere on have it; take precision=fp32"),
    Case("precision=bf16 device=cpu", "has neither avx512_bf16 nor amx_bf16", None, no_bf16, "on a processor without it"),
    Case("schedule.batch_size=1442 device=cpu", "lower schedule.batch_size", None, little_memory, "with 100 MB left"),
    # data
    Case("data.root={folder}", "digits.csv.gz is missing or damaged"),
    Case("data.root={folder} seed=1", "is missing or damaged", damaged_digits, where="damaged"),
    Case("data.root={folder} seed=2", "does not hold the 1,797 digits", short_digits, where="one line short"),
    Case("data=cifar10 data.root={folder} data.download=false", "Set data.root=FOLDER to the folder that holds one of them"),
    Case("data=cifar10 data.root={folder}", "is not the official archive", other_archive, where="another file of that name"),
    Case("data=cifar10 data.root={folder} seed=1", "os.system", malicious_cifar, where="malicious pickles"),
    Case("data=mini_imagenet model=resnet50 data.root={folder}", "python scripts/prepare_mini_imagenet.py"),
    # the run's directory
    Case("run_directory={folder}/file", "is a file, or is below one", lambda folder: (folder / "file").touch()),
    Case("runs=/proc/runs", "cannot write /proc/runs/digits/resnet20/lcm2/seed0-"),
    Case("run_directory={folder}/run seed=1", "seed: 0 there, 1 here", finished_run, where="where a run of seed 0 is stored"),
    Case("run_directory={folder}/run", "delete this one file", damaged_run_json, where="run.json damaged"),
    Case("run_directory={folder}/run device=cpu", "no usable checkpoint", damaged_checkpoint, where="its checkpoint damaged"),
    # the scripts
    Case("scripts/collect.py {folder}/runs", "train something first"),
    Case("scripts/collect.py --from {folder}/metrics", "name the folder of records, usually results/metrics"),
    Case("scripts/tables.py --results {folder}", "bring it back with git checkout"),
    Case("scripts/tables.py --schedule long", "no finished run without deviations has schedule=long"),
    Case("scripts/tables.py --precision fp8", "invalid choice: 'fp8' (choose from"),
    Case("scripts/status.py {folder}/runs", "name the folder that holds the runs"),
    Case("scripts/complexity.py model=resnet20 attention=lcm2 reduction=64", "choose at most 16"),
    Case("scripts/complexity.py model=resnet20 layers=many", "layers=many: of the kind of 20, which resnet20 has"),
    Case("scripts/complexity.py resnet20", "is not of the form key=value"),
    Case("scripts/score_cam.py {folder}/run", "is no run: name a directory"),
    Case("scripts/prepare_mini_imagenet.py {folder}/images {folder}/out", "Give the folder with the images"),
]  # fmt: skip


def split(case, folder):
    """(script, arguments) of a case."""
    words = shlex.split(case.line.replace("{folder}", str(folder)), posix="'" in case.line)
    return (words[0], words[1:]) if words[0].startswith("scripts/") else ("train.py", words)


def shown(text, folder):
    """A message as it stands in the table: without what differs between machines."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), ".")
    text = re.sub(
        r"\(choose from [^)]*\)", lambda choices: choices[0].replace("'", ""), text
    )  # differs between Pythons
    return re.sub(r"seed\d-[0-9a-f]{8}", "seed0-HASH", text)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What the commands need is imported here, and Hydra's parser has seen a command line."""

    folder = tmp_path_factory.mktemp("warm")
    assert command(folder, "--cfg", "job").code == 0
    finished_run(folder)


@pytest.fixture(scope="module")
def messages():
    """{case: (the command as shown, its message)}; at the end they are the table."""
    found = {}
    yield found
    if len(found) < len(CASES):
        return  # only a part was run
    lines = [
        "# Bad input, and the message that it gets",
        "",
        f"Written by tests/runs/test_bad_input.py: {len(CASES)} command lines, each with exit code 2 and no traceback.",
        "",
        "| command | message |",
        "| --- | --- |",
    ]
    for case in CASES:
        line, message = found[case]
        note = f" ({case.where})" if case.where else ""
        message = "<br>".join(part.strip().replace("|", "\\|") for part in message.strip().splitlines())
        lines.append(f"| `{line}`{note} | {message} |")
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE") == "1":
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    assert TABLE.read_text() == text, f"a message changed: look at it, then run UPDATE=1 pytest {Path(__file__).name}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line.replace("{folder}", "FOLDER"))
def test_one_message_and_exit_code_2(case, imported, messages, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    if case.arrange:
        case.arrange(folder)
    script, arguments = split(case, folder)
    if script == "train.py" and not any(a.startswith(("runs=", "run_directory=")) for a in arguments):
        arguments.append(f"runs={folder}/runs")
    ended = command(tmp_path, *arguments, script=script, prepare=case.prepare)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err and 'File "' not in ended.err
    assert "HYDRA_FULL_ERROR" not in ended.err
    assert ended.err.startswith(("error: ", "usage: ")) and ended.err.count("error: ") == 1
    assert case.words in ended.err
    assert not (folder / "ran").exists()
    message = ended.err[ended.err.index("error: ") :]
    line = shown(case.line.replace("{folder}", str(folder)), folder)
    messages[case] = f"{line if script != 'train.py' else f'train.py {line}'}", shown(message, folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py", "seeed=1"], "seeed=1: no such key; nearest: seed"),
        (["train.py", "attention.reduction=64"], "choose at most 16"),
        (["train.py", "seed=${nope}"], "Interpolation key 'nope' not found"),
        (["scripts/collect.py", "/nowhere/runs"], "no folder /nowhere/runs"),
    ],
)
def test_as_a_user_starts_it(arguments, words, tmp_path):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_the_traceback_comes_back(imported, tmp_path):
    ended = command(tmp_path, "run_directory=/proc/nope", "debug=true")
    assert ended.code == 2 and "Traceback (most recent call last)" in ended.err


def test_what_is_no_bad_input_is_a_failure_with_its_traceback(tiny, tmp_path):
    """A bug is not dressed up as a message."""
    from tiny import run

    def bug():
        from lcm.training import epochs as loop

        loop.evaluate = lambda *args: 1 / 0

    ended = run(tmp_path, tiny(f"runs={tmp_path}"), bug)
    assert (
        ended.code == 1
        and "Traceback" in ended.err
        and ended.err.endswith("error: ZeroDivisionError: division by zero\n")
    )
    (file,) = tmp_path.rglob("run.json")
    assert json.loads(file.read_text())["state"] == "failed"
    shutil.rmtree(tmp_path / "digits")


def test_a_bug_before_the_config_is_composed_is_no_bad_input(imported, tmp_path):
    def bug():
        from lcm import cli

        cli.override_problems = lambda *args: 1 / 0

    ended = command(tmp_path, "seed=1", prepare=bug)
    assert ended.code == 1 and "Traceback" in ended.err and "ZeroDivisionError" in ended.err
