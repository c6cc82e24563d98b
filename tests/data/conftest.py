"""Small stand-ins for CIFAR and for mini-ImageNet's numbers."""

import hashlib
import pickle

import pytest
from mini_copies import CLASSES
from small_cifar import arrays, records

from lcm.data import cifar
from lcm.data.mini_imagenet import copies as mini_imagenet_copies
from lcm.data.mini_imagenet import prepare as prepare_mini_imagenet


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name) -> a root with the unpacked folder; the sums of its files become the official ones."""

    def build(name, protocol=4):
        official = cifar.OFFICIAL[name]
        folder = tmp_path / "root" / official.folder
        folder.mkdir(parents=True)
        for file, record in records(name).items():
            (folder / file).write_bytes(pickle.dumps(record, protocol=protocol))
        sums = {
            part: {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in getattr(official, part)}
            for part in ("train", "test", "meta")
        }
        contents = cifar._contents(arrays(name, "train"), arrays(name, "test"))
        fake = official._replace(num_train=200, num_test=100, contents=contents, **sums)
        monkeypatch.setitem(cifar.OFFICIAL, name, fake)
        return tmp_path / "root"

    return build


@pytest.fixture
def small_mini_imagenet(monkeypatch):
    """3 classes of 5 + 1 images, lists of one class each, at least 12 images in a class of ImageNet."""
    monkeypatch.setattr(prepare_mini_imagenet, "WNIDS", CLASSES)
    monkeypatch.setattr(prepare_mini_imagenet, "PER_CLASS", {"train": 5, "test": 1})
    monkeypatch.setattr(mini_imagenet_copies, "LISTS", dict.fromkeys(mini_imagenet_copies.LISTS, 1))
    for module in (prepare_mini_imagenet, mini_imagenet_copies):
        monkeypatch.setattr(module, "FEWEST_IN_IMAGENET", 12)
