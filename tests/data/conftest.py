"""A small stand-in for CIFAR."""

import pickle

import pytest
from small_cifar import arrays, records

from lcm.data import cifar


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
