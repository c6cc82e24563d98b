"""Small stand-ins for CIFAR and for mini-ImageNet's numbers."""

import pickle

import pytest
from mini_copies import CLASSES
from small_cifar import arrays, records

from lcm.data import cifar, mini_imagenet


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name) -> a root with the unpacked folder, whose images become the official ones."""

    def build(name, protocol=4):
        official = cifar.OFFICIAL[name]
        folder = tmp_path / "root" / official.folder
        folder.mkdir(parents=True)
        for file, record in records(name).items():
            (folder / file).write_bytes(pickle.dumps(record, protocol=protocol))
        contents = cifar._contents(arrays(name, "train"), arrays(name, "test"))
        monkeypatch.setattr(official, "contents", contents)
        monkeypatch.setattr(cifar, "IMAGES", {"train": 200, "test": 100})
        return tmp_path / "root"

    return build


@pytest.fixture
def small_mini_imagenet(monkeypatch):
    """3 classes of 5 + 1 images; 12 or 13 images in a class of ImageNet, in most classes 13."""
    monkeypatch.setattr(mini_imagenet, "WNIDS", CLASSES)
    monkeypatch.setattr(mini_imagenet, "PER_CLASS", {"train": 5, "test": 1})
    monkeypatch.setattr(mini_imagenet, "FEWEST_IN_IMAGENET", 12)
    monkeypatch.setattr(mini_imagenet, "MOST_IN_IMAGENET", 13)
