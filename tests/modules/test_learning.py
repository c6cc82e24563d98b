"""Every attention lets its network learn the embedded digits; minutes a network, so only with `pytest -m slow`.

LCM1 is the one that fails where a loop over the network's convolutions initialises its own (REPRODUCTION.md).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lcm.config.options import choices

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attention", choices("attention"))
@pytest.mark.parametrize(
    ("model", "epochs", "least"), [("resnet20", 8, 97), ("densenet40", 3, 60)], ids=["resnet20", "densenet40"]
)
def test_learns_digits(model, epochs, least, attention, tmp_path):
    """Test top-1 (%) of the last epoch, through the command line.

    DenseNet-40 costs ten times as much an image: three epochs, after which it is far from done (guessing gives 10 %).
    """
    arguments = [
        f"model={model}",
        f"attention={attention}",
        f"schedule.epochs={epochs}",
        "threads=1",
        f"runs={tmp_path}",
    ]
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True)
    (record,) = tmp_path.glob("*/*/*/*/run.json")
    assert json.loads(record.read_text())["result"]["test_top1"] >= least
