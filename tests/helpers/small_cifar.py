"""Small CIFAR data sets in every layout in use; the fixture `small` makes them official."""

import hashlib
import shutil
import tarfile

import numpy as np

from lcm.config.compose import load as load_config
from lcm.data import build_data, cifar


def records(name):
    """{file: record} in the official layout: 200 + 100 images, as many of each class."""
    official = cifar.OFFICIAL[name]
    random = np.random.default_rng(official.num_classes)
    files = {}
    for part, count in ((official.train, 200), (official.test, 100)):
        labels = random.permutation(np.arange(count) % official.num_classes)
        for file, chosen in zip(part, np.array_split(labels, len(part)), strict=True):
            files[file] = {
                "batch_label": f"{file} of {name}",
                official.labels_key: chosen.tolist(),
                "data": random.integers(0, 256, (len(chosen), 3072), dtype=np.uint8),
                "filenames": [f"{label}_{i}.png" for i, label in enumerate(chosen.tolist())],
            }
    names = [f"class{i:02}" for i in range(official.num_classes)]
    files[official.meta] = {official.names_key: names, "num_vis": 3072}
    return files


def arrays(name, part):
    """(images (N, 32, 32, 3), labels (N,)) of records(name), by plain numpy."""
    official, files = cifar.OFFICIAL[name], records(name)
    chosen = [files[file] for file in getattr(official, part)]
    images = (
        np.concatenate([r["data"] for r in chosen]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    return images, np.concatenate([r[official.labels_key] for r in chosen])


def pack(root, name, monkeypatch):
    """Replace the unpacked folder by the archive, which becomes the official one."""
    official = cifar.OFFICIAL[name]
    archive = root / official.archive
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(root / official.folder, official.folder)
    shutil.rmtree(root / official.folder)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(official, "archive_md5", md5)
    return archive


def load(root, name, **options):
    """The data set as configs/data has it, from `root`, without downloading."""
    return build_data(load_config("data", name) | {"root": root, "download": False} | options)


def held(name, part):
    """`arrays` as the data set holds them: CIFAR-100 by label, then SHA-256 of the pixels."""
    images, labels = arrays(name, part)
    if name == "cifar10":
        return images, labels
    digests = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
    order = np.lexsort((digests, labels))
    return images[order], labels[order]


def holds(data, name):
    """Whether the data set is exactly records(name), in the order of `held`."""
    halves = {"train": data.train(64, seed=0).resident, "test": data.test(64).resident}
    return all(
        np.array_equal(resident.images, images) and np.array_equal(resident.labels, labels)
        for part, resident in halves.items()
        for images, labels in [held(name, part)]
    )
