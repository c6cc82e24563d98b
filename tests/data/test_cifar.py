"""CIFAR in every layout in use: small files, and the real ones.

Tests on the real files need LCM_TEST_DATA, a folder with cifar-10-batches-py (official).
"""

import os
import pickle
import shutil

import numpy as np
import pytest
from small_cifar import holds, load, pack, records

from lcm.data import cifar
from lcm.errors import UserError

REAL = os.environ.get("LCM_TEST_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="needs LCM_TEST_DATA, a folder with the real CIFAR files"
)


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_unpacked_folder(small, name, protocol):
    """Also as `root` itself, and one folder deeper, as unpacking into a folder of its name has."""
    root, folder = small(name, protocol), cifar.OFFICIAL[name].folder
    data = load(root, name)
    assert holds(data, name) and data.classes[3] == "class03"
    assert len(data.classes) == data.num_classes
    assert load(root / folder, name).fingerprint == data.fingerprint
    for place in (folder, "kaggle"):
        target = root / f"in {place}" / place
        shutil.copytree(root / folder, target / folder)
        assert holds(load(target.parent, name), name)


def test_an_archive_is_downloaded_once_and_unpacked_once(small, name, monkeypatch, tmp_path):
    archive = pack(small(name), name, monkeypatch)

    def fetch(target, places, md5):
        assert (places, md5) == (["http://mirror"], cifar.OFFICIAL[name].archive_md5)
        shutil.copy(archive, target)

    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "fetch", fetch)
        assert holds(load(new, name, download=True, places=["http://mirror"]), name)
    shutil.rmtree(new / cifar.OFFICIAL[name].folder)
    assert holds(load(new, name), name)
    (new / archive.name).unlink()
    assert holds(load(new, name), name)


@pytest.mark.parametrize("alter", ["", "pixel", "label"])
def test_the_content_decides_and_not_the_order(small, name, alter):
    """The training files of a copy in reversed order, with one pixel or label changed."""
    root, official = small(name), cifar.OFFICIAL[name]
    expected = load(root, name)
    for file in official.train:
        record = records(name)[file]
        record["data"] = record["data"][::-1].copy()
        record["data"][0, 0] += alter == "pixel"
        record[official.labels_key] = record[official.labels_key][::-1]
        record[official.labels_key][0] ^= alter == "label"
        (root / official.folder / file).write_bytes(pickle.dumps(record))
    if alter:
        words = rf"{official.folder} does not have exactly the images .*data\.verify=false accepts"
        with pytest.raises(UserError, match=words):
            load(root, name)
    data = load(root, name, verify=not alter)
    assert len(data.train(64, seed=0).resident) == 200
    # CIFAR-100 is held in an order of its own: anybody's exact copy gives the same runs.
    same = name == "cifar100" and not alter
    assert holds(data, name) == (data.fingerprint == expected.fingerprint) == same


@pytest.fixture(scope="module")
def real():
    return load(REAL, "cifar10", pad=0)


@needs_real
def test_real_cifar10_equals_torchvisions(real):
    from torchvision.datasets import CIFAR10

    halves = ((True, real.train(64, seed=0).resident), (False, real.test(64).resident))
    for train, resident in halves:
        theirs = CIFAR10(REAL, train=train)
        assert np.array_equal(resident.images, theirs.data)
        assert resident.labels.tolist() == theirs.targets and real.classes == theirs.classes


@needs_real
def test_mean_and_deviation_are_those_of_the_real_training_images(real):
    pixels = real.train(64, seed=0).resident.images.double() / 255
    assert real.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert real.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), abs=1e-9)
