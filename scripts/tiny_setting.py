"""A setting in which a whole run takes about a second on one core: what prove_resume.py, prove_owner.py and the tests train.

Configs of its own under the names of real ones (digits, resnet20), so that all else is the real thing: the checks, train.train,
the run directories, the tables. 48 training and 24 test images, ResNet-8, 3 epochs of 6 steps.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import lcm.config
from lcm.data.sources import Digits

ROOT = Path(__file__).resolve().parents[1]
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
sys.path.insert(0, str(ROOT))  # for `import train`


class FewDigits(Digits):
    """The first 48 training and 24 test images of the digits."""

    def __init__(self, **keys):
        super().__init__(**keys)
        (images, labels), (test_images, test_labels) = self._train, self._test
        few = (images[:48], labels[:48]), (test_images[:24], test_labels[:24])
        self._hold(*few, self.classes, self.mean, self.std)


def use(folder):
    """Write the setting's configs to `folder`/configs and let this process, and what it forks, check against them."""
    configs = Path(folder) / "configs"
    shutil.copytree(ROOT / "configs", configs)
    for file, changes in {
        "data/digits": {"_target_: lcm.data.Digits": "_target_: tiny_setting.FewDigits"},
        "model/resnet20": {"layers: 20": "layers: 8"},
        "schedule/digits": {
            "epochs: 8": "epochs: 3", "batch_size: 64": "batch_size: 8", "test_batch_size: 100": "test_batch_size: 8",
        },
    }.items():  # fmt: skip
        text = (configs / f"{file}.yaml").read_text()
        for before, after in changes.items():
            if f"\n{before}" not in text:
                raise ValueError(f"{file}.yaml has no line {before!r}: bring this script up to it")
            text = text.replace(f"\n{before}", f"\n{after}")
        (configs / f"{file}.yaml").write_text(text)
    lcm.config.CONFIGS = configs
    lcm.config._read.cache_clear()
    return configs


def compose(*overrides):
    """The config of a command line, resolved, as nested dicts; `use` comes first."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    always = ["threads=1", "device=cpu", "tensorboard=false", "progress=lines"]
    with initialize_config_dir(version_base="1.3", config_dir=str(lcm.config.CONFIGS)):
        return OmegaConf.to_container(compose("train", overrides=[*always, *overrides]), resolve=True)


def warm_up(folder):
    """Train one epoch here, so that processes forked from this one have everything imported and start in a moment."""
    from train import train

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(compose(f"runs={folder}/warm", "schedule.epochs=1"))
