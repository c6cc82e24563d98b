"""The default data set."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from lcm.data import Digits


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    parts = Digits().train(64, seed=0).resident, Digits().test(64).resident
    images, labels = (torch.cat([getattr(p, k) for p in parts]) for k in ("images", "labels"))
    assert torch.equal(
        images,
        images[:, ::4, ::4, :1].repeat(1, 1, 1, 3).repeat_interleave(4, 1).repeat_interleave(4, 2),
    )
    grey = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    ours = {
        (i.tobytes(), label)
        for i, label in zip(images[:, ::4, ::4, 0].numpy(), labels.tolist(), strict=True)
    }
    assert ours == {(i.tobytes(), label) for i, label in zip(grey, theirs.target, strict=True)}


def test_digits_have_a_stratified_split_that_no_seed_changes():
    digits = Digits()
    train, test = digits.train(64, seed=1).resident, digits.test(64).resident
    assert (len(train), len(test), len(digits.classes)) == (1442, 355, digits.num_classes)
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert (abs(share - 0.2) < 0.005).all()
    assert torch.equal(digits.train(64, seed=2).resident.images, train.images)
    assert digits.fingerprint.startswith("85ee40c7") and len(digits.fingerprint) == 64
    values = train.images.double() / 255
    assert values.mean().item() == pytest.approx(digits.mean[0])
    assert values.std().item() == pytest.approx(digits.std[0], rel=1e-5)


def test_start_up_imports_neither_scikit_learn_nor_torchvision():
    code = (
        "import sys; from lcm.data import Digits; batches = Digits().train(64, 0); "
        "batches.prepare(next(batches.iterate(1)), 'cpu');print([name for name in ('sklearn', "
        "'torchvision', 'scipy', 'pandas') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
