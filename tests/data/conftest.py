"""Small stand-ins for CIFAR and for mini-ImageNet's numbers."""

import hashlib
import pickle

import pytest
from mini_copies import CLASSES
from small_cifar import arrays, records

from lcm.data import cifar
from lcm.data.mini_imagenet import copies, prepare


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name) -> a root with the unpacked folder, whose md5 sums become the official ones."""

    def build(name, protocol=4):
        official = cifar.OFFICIAL[name]
        folder = tmp_path / "root" / official.folder
        folder.mkdir(parents=True)
        for file, record in records(name).items():
            (folder / file).write_bytes(pickle.dumps(record, protocol=protocol))
        sums = {
            part: {
                file: hashlib.md5((folder / file).read_bytes()).hexdigest()
                for file in getattr(official, part)
            }
            for part in ("train", "test", "meta")
        }
        contents = cifar._contents(arrays(name, "train"), arrays(name, "test"))
        monkeypatch.setitem(cifar.OFFICIAL, name, official._replace(contents=contents, **sums))
        monkeypatch.setattr(cifar, "NUM_TRAIN", 200)
        monkeypatch.setattr(cifar, "NUM_TEST", 100)
        return tmp_path / "root"

    return build


@pytest.fixture
def small_mini_imagenet(monkeypatch):
    """3 classes of 5 + 1 images; at least 12 images in a class of ImageNet."""
    monkeypatch.setattr(prepare, "WNIDS", CLASSES)
    monkeypatch.setattr(prepare, "PER_CLASS", {"train": 5, "test": 1})
    monkeypatch.setattr(copies, "FEWEST_IN_IMAGENET", 12)
