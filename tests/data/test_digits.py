"""The default data set."""

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


def test_digits_have_a_split_that_no_seed_changes():
    digits = Digits()
    train, test = digits.train(64, seed=1).resident, digits.test(64).resident
    assert (len(train), len(test), len(digits.classes)) == (1442, 355, digits.num_classes)
    assert torch.equal(digits.train(64, seed=2).resident.images, train.images)
    assert digits.fingerprint.startswith("85ee40c7") and len(digits.fingerprint) == 64
    std, mean = torch.std_mean(train.images.double() / 255)
    assert mean == pytest.approx(digits.mean[0]) and std == pytest.approx(digits.std[0], rel=1e-5)
