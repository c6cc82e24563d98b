"""Digits, and the configs of all data sets."""

import gzip
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

import lcm.data
from lcm.config.compose import load
from lcm.data import Digits
from lcm.errors import UserError


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    digits = Digits()
    ours = {}
    for batches in (digits.train(2000, seed=0), digits.test(2000)):
        for image, label in zip(batches.resident.images, batches.resident.labels, strict=True):
            ours.setdefault((image[::4, ::4, 0].numpy().tobytes(), int(label)), image)
    grey = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    assert {
        (image.tobytes(), int(label)) for image, label in zip(grey, theirs.target, strict=True)
    } == set(ours)
    image = next(iter(ours.values()))
    assert image.shape == (32, 32, 3) and torch.equal(image[..., 0], image[..., 2])
    assert torch.equal(image, image[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_digits_have_a_stratified_split_that_no_seed_changes():
    digits = Digits()
    train, test = digits.train(64, seed=1).resident, digits.test(64).resident
    assert (len(train), len(test), digits.num_classes) == (1442, 355, 10) and len(
        digits.classes
    ) == 10
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert (abs(share - 0.2) < 0.005).all()
    assert torch.equal(digits.train(64, seed=2).resident.images, train.images)
    assert (
        digits.fingerprint == "85ee40c7" + Digits().fingerprint[8:]
        and len(digits.fingerprint) == 64
    )
    values = train.images.double() / 255
    assert values.mean().item() == pytest.approx(digits.mean[0])
    assert values.std().item() == pytest.approx(digits.std[0], rel=1e-5)


def test_start_up_imports_neither_scikit_learn_nor_torchvision():
    code = (
        "import sys; from lcm.data import Digits; batches = Digits().train(64, 0); batches.prepare(batches.epoch(0)[0], 'cpu');"
        "print([name for name in ('sklearn', 'torchvision', 'scipy', 'pandas', 'PIL') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


@pytest.mark.parametrize(
    "content", [None, b"", b"1,2,3\n", b"\x1f\x8b\x08\x00"], ids=["missing", "empty", "text", "cut"]
)
def test_damaged_digits_are_one_message(tmp_path, content):
    if content is not None:
        (tmp_path / "digits.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"digits\.csv\.gz is missing or damaged .*data\.root=null"):
        Digits(root=tmp_path)


def test_digits_of_another_table_are_refused(tmp_path):
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"1,2,3\n" * 1797))
    with pytest.raises(UserError, match="does not hold the 1,797 digits"):
        Digits(root=tmp_path)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "folder", "mini_imagenet"])
def test_the_yaml_has_the_arguments_of_its_class_and_its_defaults(name):
    config = load("data", name)
    target = getattr(lcm.data, config.pop("_target_").rpartition(".")[2])
    config.pop("_convert_", None)
    bound = inspect.signature(target).bind(**config)
    missing = inspect.signature(target).parameters.keys() - bound.arguments.keys()
    if name == "mini_imagenet":  # whose images are large, all used, and split already
        assert missing == {"pad", "mirror", "test_share", "limit", "label"}
    else:
        assert missing <= {"complete"}
    assert config["name"] == name
