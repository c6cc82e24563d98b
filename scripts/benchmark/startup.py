"""The part `startup`: from a command to its first finished training step, train.py beside a plain Hydra application."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "layers: 20\nrate: 0.1\nhydra: {run: {dir: .}, output_subdir: null}\n"
APPLICATION = """
import hydra
import pandas
import torch
import torch.nn.functional as F
import torchvision
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lcm.models import CifarResNet


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    network = CifarResNet(cfg.layers, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=cfg.rate, momentum=0.9)
    F.cross_entropy(network(torch.randn(64, 3, 32, 32)), torch.arange(64) % 10).backward()
    optimizer.step()
    open("stepped", "w").close()


main()
"""


def plain(spec):
    """The plain application, which leaves a file after its first step."""
    return lambda: first_step(spec, ["application.py"], "stepped")


def train(spec):
    """train.py, which writes its first checkpoint after its first step."""
    command = [str(ROOT / "train.py"), "attention=none", f"threads={spec.threads}", "runs=runs"]
    return lambda: first_step(
        spec, [*command, "checkpoint.every=1 step"], "runs/*/*/*/*/checkpoint.pt"
    )


def first_step(spec, command, sign):
    """Run a command in an empty folder until a file that fits `sign` is there. Raises RuntimeError where it ends before."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(spec.threads)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(CONFIG)
        (Path(folder) / "application.py").write_text(APPLICATION)
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=sys.stderr,
        )
        try:
            while not any(Path(folder).glob(sign)):
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended before its first step")
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
    return 1
