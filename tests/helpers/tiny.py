"""A setting in which a whole run takes a second on one core: what proofs and tests train.

Configs of its own under the names of real ones (digits, resnet20), so that all else is the real
thing: the checks, train.train, the run directories, the tables. 48 training and 24 test images,
ResNet-8, 3 epochs of 6 steps. With PHOTOGRAPHS the images come from a cache, by loader workers.

Runs are processes of their own, forked from this one, which has torch imported: they start in
milliseconds.
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from hydra_config import composed
from PIL import Image

import lcm.config.compose
import train
from lcm import cli
from lcm.data.digits import Digits
from lcm.data.folder import list_images
from lcm.data.photographs import Photographs
from lcm.errors import Stopped
from lcm.runs.directory import run_directory as directory_of
from lcm.training import checkpoint
from lcm.training.graphs import Repeated

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ["data=mini_imagenet", "schedule=digits"]
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")


class FewDigits(Digits):
    """The first 48 training and 24 test images of the digits."""

    def __init__(self, **keys):
        super().__init__(**keys)
        (images, labels), (test_images, test_labels) = self._train, self._test
        few = (images[:48], labels[:48]), (test_images[:24], test_labels[:24])
        self.hold(*few, self.classes, self.mean, self.std)


def few_photographs(name, num_classes, image_size, root, workers, cache_size, **_):
    """Noise in two classes, 24 training and 12 test images each, as large images are read."""
    for number in range(72):
        file = Path(root, "train" if number < 48 else "test", str(number % 2), f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.effect_noise((40, 36), 1 + number).save(file)
    found, _ = list_images(root)
    facts = name, num_classes, image_size, True, found
    return Photographs(*facts, workers, Path(root, "cache"), cache_size)


def use(folder):
    """Write the setting's configs to `folder`/configs and let this process, and what it forks,
    check against them.
    """
    configs = Path(folder) / "configs"
    shutil.copytree(ROOT / "configs", configs)
    for file, changes in {
        "data/digits": {"_target_: lcm.data.Digits": "_target_: tiny.FewDigits"},
        "data/mini_imagenet": {
            "_target_: lcm.data.class_folders": "_target_: tiny.few_photographs",
            "image_size: 224": "image_size: 32",
            "root: data/mini-imagenet": f"root: {folder}/photographs",
        },
        "model/resnet20": {"layers: 20": "layers: 8"},
        "schedule/digits": {"epochs: 8": "epochs: 3\nbatch_size: 8\ntest_batch_size: 8"},
    }.items():  # fmt: skip
        text = (configs / f"{file}.yaml").read_text()
        for before, after in changes.items():
            text = text.replace(f"\n{before}", f"\n{after}")
        (configs / f"{file}.yaml").write_text(text)
    lcm.config.compose.use_configs(configs)
    return configs


def compose(*overrides):
    """The config of a command line, resolved, as nested dicts; `use` comes first."""
    always = ["threads=1", "device=cpu", "tensorboard=false", "progress=lines"]
    return composed(*always, *overrides)


_warm = False


def warm_up(folder):
    """Train one epoch here, once, so that processes forked from this one have everything imported
    and start in a moment.
    """
    global _warm
    if _warm:
        return
    _warm = True
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train.train(compose(f"runs={folder}/warm", "schedule.epochs=1"))


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal that killed it) and what it said."""

    code: int
    out: str
    err: str


class Logged:
    """A process, leader of its own group, that runs function(*args); what it prints goes to
    `folder`/`name`.out, .err.
    """

    def __init__(self, folder, function, *args, name="process"):
        super().__init__(target=function, args=args)
        self.out, self.err = (Path(folder) / f"{name}.{kind}" for kind in ("out", "err"))
        self.start()

    def run(self):
        os.setpgid(0, 0)
        for stream, file in ((1, self.out), (2, self.err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.pop("HYDRA_FULL_ERROR", None)
        code = 1
        try:
            super().run()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # multiprocessing's own end would wait for a loader's workers

    def wait(self, timeout=300):
        """Ended, when it has; loader workers may outlive it. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while self.exitcode is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"not ended after {timeout} s: {self.out}, {self.err}")
            time.sleep(0.002)
        texts = (file.read_text(errors="replace") for file in (self.out, self.err))
        return Ended(self.exitcode, *texts)


class Process(Logged, multiprocessing.get_context("fork").Process):
    """Forked from this one."""


class NewProcess(Logged, multiprocessing.get_context("spawn").Process):
    """A new interpreter: in a fork of a process that has used a GPU none can be used."""


def train_as_main(config, prepare=None):
    """Train as `python train.py` does with a composed config: signals, messages, exit codes.

    `prepare` is called first; there a test can arrange what is to happen in this process.
    """
    if prepare:
        prepare()
    try:
        with cli.STOP.listening():
            train.train(config)
    except (Stopped, Exception) as error:
        cli.exit_with_message(error)


def run(folder, config, prepare=None):
    """Train in a process of its own, to whatever end. Returns Ended."""
    return Process(folder, train_as_main, config, prepare).wait()


def train_in_new(configs, config, prepare=None):
    """`train_as_main` in a NewProcess, where nobody has called `use` yet."""
    lcm.config.compose.use_configs(configs)
    train_as_main(config, prepare)


def after_step(number, act, kind="train"):
    """A `prepare`: the process calls act() behind its step `number` of a kind (train, test), from
    1.
    """

    def prepare():
        original = Repeated.__init__
        calls = []

        def watched(self, step, batches, key, *graphs):
            def called(*batch):
                calls.append(step(*batch))
                if len(calls) == number:
                    act()

            original(self, called if key[-1] == kind else step, batches, key, *graphs)

        Repeated.__init__ = watched

    return prepare


def die():
    """End this process as `kill -9` does; its loader workers live on."""
    os.kill(os.getpid(), signal.SIGKILL)


def started(folder, script, arguments, cwd=ROOT, prepare=None, name="process"):
    """`python SCRIPT ARGUMENTS` in the folder `cwd`, forked: Hydra, the checks and all."""

    def main():
        if prepare:
            prepare()
        os.chdir(cwd)
        sys.argv = [str(script), *map(str, arguments)]
        runpy.run_path(str(script), run_name="__main__")

    return Process(folder, main, name=name)


def command(folder, *arguments, script="train.py", prepare=None):
    """Such a command in the checkout, to its end. Returns Ended."""
    return started(folder, script, arguments, prepare=prepare).wait()


def state_of(config):
    """The run.json of a config's run."""
    return json.loads((directory_of(config) / "run.json").read_text())


def place_of(config):
    """(epoch, step) of a run's newest checkpoint."""
    saved = checkpoint.read(directory_of(config) / checkpoint.NAME)
    return saved["epoch"], saved["index"]


def compare_runs(one, other):
    """In what two directories of equal runs differ, wall time apart: a line each."""
    here, there = _content(one), _content(other)
    return [
        f"{other}: {what}" for what in sorted({*here, *there}) if here.get(what) != there.get(what)
    ]


def _content(directory):
    """{what: its text or bytes} of everything that two equal runs have in common."""
    saved = checkpoint.read(directory / checkpoint.NAME)
    found = {
        f"{part} {name}": tensor.numpy().tobytes()
        for part in ("model", "momentum")
        for name, tensor in saved[part].items()
    }
    found["position"] = [saved[key] for key in ("epoch", "index", "config_hash")]
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    times = {"seconds": None, "images_per_second": None}
    found |= {
        f"metrics.jsonl line {n}": json.loads(line) | times for n, line in enumerate(lines, 1)
    }
    state = json.loads((directory / "run.json").read_text())
    equal = [
        "state",
        "message",
        "result",
        "run",
        "params",
        "macs",
        "gfloat",
        "data_fingerprint",
        "threads",
    ]
    return found | {f"run.json {key}": state[key] for key in equal}
