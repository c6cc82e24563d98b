"""CIFAR-10 and CIFAR-100: the official files, unofficial copies of them, and class folders of images.

Counts, shapes and labels are always checked, the md5 sums of the official files with `verify`. Pickles are read without
running the code in them (cifar_pickle.py).
"""

import concurrent.futures
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.data.class_folders import SPLITS, read_class_folders
from lcm.data.download import fetch, unpack
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, one_line
from lcm.files import file_lock

NUM_TRAIN, NUM_TEST = 50_000, 10_000  # images of each of the two sets


class _Official(NamedTuple):
    """The files of the official archive (https://www.cs.toronto.edu/~kriz/cifar.html), with their md5 sums."""

    title: str
    archive: str
    archive_md5: str
    folder: str
    train: dict
    test: dict
    meta: dict
    labels_key: str
    names_key: str
    num_classes: int
    mean: tuple  # of the training pixels in [0, 1]
    std: tuple
    contents: str  # `_contents` of its images and labels
    sorted: (
        bool  # whether images are held in the order of `_canonical`, whatever a copy's own order
    )


OFFICIAL = {
    "cifar10": _Official(
        title="CIFAR-10",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels_key="labels",
        names_key="label_names",
        num_classes=10,
        mean=(0.49139967861519607, 0.48215840839460783, 0.44653091444546567),
        std=(0.24703223246328207, 0.2434851280000556, 0.26158784172796445),
        contents="fc17c81660c0d988ce304c7748d3d37d8b05761c15de2c87667a5b1a261b60a9",
        sorted=False,  # the first records have the official order
    ),
    "cifar100": _Official(
        title="CIFAR-100",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels_key="fine_labels",
        names_key="fine_label_names",
        num_classes=100,
        mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        std=(0.26733428587924074, 0.25643846291708816, 0.276150471325684),
        contents="f76b37c33e355ecbbbfa99a4a2b139df7d2b1ce1e48da04d903807cc1719a699",
        sorted=True,
    ),
}


class Cifar(ResidentSet):
    """CIFAR-10 or CIFAR-100: 50,000 + 10,000 images of 32x32x3 bytes (A. Krizhevsky, 2009).

    The first of these that is found under `root` is read:
      1. the unpacked official archive: cifar-10-batches-py/ or cifar-100-python/ (or `root` itself is that folder);
      2. class folders: train/<class>/*.png and test/<class>/*.png;
      3. the official archive, cifar-10-python.tar.gz or cifar-100-python.tar.gz, which is then unpacked beside it;
      4. with `download`, the archive from the first mirror of `places` that delivers it.

    `verify` accepts only the official images with their labels, whatever their order and container; without it, copies with the
    same layout and counts are accepted. CIFAR-100 is held in an order of its own (label, then SHA-256 of the pixels), so that
    every exact copy gives the same batches; CIFAR-10 in the copy's order. The mean and the deviation are those of the official training images. Raises
    `UserError`.
    """

    def __init__(
        self, name, num_classes, image_size, root, workers, verify, download, places, pad, mirror
    ):
        super().__init__(name, num_classes, image_size, workers, pad, mirror)
        official, root = OFFICIAL[name], Path(root).expanduser()
        try:
            if not (root / official.folder).exists() and (root / "train").is_dir():
                train, test, classes = _read_class_folders(root, official, verify)
            else:
                folder = _official_folder(root, official, verify, download, places)
                train, test, classes = _read_official(folder, official, verify)
        except OSError as error:
            raise UserError(
                f"{error.filename or root} cannot be read or written ({error.strerror}). Make room, change its permissions, or "
                "choose another folder: data.root=FOLDER."
            ) from error
        if official.sorted:
            train, test = _canonical(*train), _canonical(*test)
        self.hold(train, test, classes, official.mean, official.std)


def _official_folder(root: Path, official: _Official, verify: bool, download: bool, places) -> Path:
    """The folder with the official files; the archive is downloaded and unpacked where necessary."""
    folder, archive = root / official.folder, root / official.archive
    if folder.exists():
        return folder
    if any((root / file).is_file() for file in official.train):
        return root
    if not (download or archive.is_file()):
        raise UserError(
            f"{official.title} is not under {root.absolute()}: there is no folder {official.folder}, no train/<class>/*.png "
            f"and no {official.archive}. Set data.root=FOLDER to the folder that holds one of them, or data.download=true."
        )
    from torchvision.datasets.utils import calculate_md5  # takes a second

    root.mkdir(parents=True, exist_ok=True)
    with file_lock(
        root / f".{official.archive}.lock", f"{archive}: another process is preparing it; waiting"
    ):
        if folder.exists():  # that process has unpacked it
            return folder
        if not archive.is_file():
            fetch(archive, places, official.archive_md5)
        elif verify and (md5 := calculate_md5(archive)) != official.archive_md5:
            raise UserError(
                f"{archive} ({archive.stat().st_size:,} bytes, md5 {md5}) is not the official archive (md5 "
                f"{official.archive_md5}). Delete it to have it downloaded; data.verify=false accepts an unofficial copy."
            )
        unpack(archive, folder)
    return folder


def _read_official(folder: Path, official: _Official, verify: bool):
    """(train, test, classes) of a folder in the official layout."""
    files = official.train | official.test | official.meta

    def read(file):
        path = folder / file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); {official.title} consists of {', '.join(files)}. "
                f"Restore it, or delete {folder} to have the archive unpacked or downloaded again."
            ) from error
        return read_cifar_pickle(data, path), hashlib.md5(data, usedforsecurity=False).hexdigest()

    with concurrent.futures.ThreadPoolExecutor() as pool:  # md5 and copying release Python's lock
        records, sums = zip(*pool.map(read, files), strict=True)
    records = dict(zip(files, records, strict=True))
    (meta,) = official.meta
    names = records[meta].get(official.names_key)
    if not isinstance(names, list) or len(names) != official.num_classes:
        raise UserError(
            f"{folder / meta} does not hold {official.num_classes} class names as {official.names_key}: it is damaged or not "
            f"of {official.title}. Replace it by the official file."
        )
    classes = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    train, test = (
        tuple(
            map(
                np.concatenate,
                zip(
                    *[_batch(records[file], folder / file, official) for file in part], strict=True
                ),
            )
        )
        for part in (official.train, official.test)
    )
    _check_counts(train, test, classes, folder, official)
    unofficial = [
        f"{folder / file} is not the official file: its md5 is {found}, the official one {md5}."
        for (file, md5), found in zip(files.items(), sums, strict=True)
        if found != md5
    ]
    # Many copies have the official images in another order or encoding: their content decides.
    if verify and unofficial and _contents(train, test) != official.contents:
        raise UserError(
            "\n".join(unofficial)
            + f"\nThis copy has other images or labels than {official.title}: it is damaged or altered. "
            f"Delete {folder} to have the archive unpacked or downloaded again; data.verify=false "
            "accepts the copy as it is."
        )
    return train, test, classes


def _batch(record: dict, path: Path, official: _Official):
    """(images uint8 (N, 32, 32, 3), labels int64 (N,)) of one file, types and sizes checked."""
    data, labels = record.get("data"), record.get(official.labels_key)
    complete = (
        isinstance(data, np.ndarray)
        and isinstance(labels, list)
        and data.shape == (len(labels), 3072)
    )
    if not complete or not all(
        type(label) is int and 0 <= label < official.num_classes for label in labels
    ):
        raise UserError(
            f"{path} does not hold data (N, 3072) and {official.labels_key}, N integers from 0 to {official.num_classes - 1}: "
            f"it is damaged or not of {official.title}. Replace it by the official file."
        )
    images = np.stack(
        np.split(data, 3, axis=1), axis=-1
    )  # planes of red, green and blue -> (N, 1024, 3)
    return images.reshape(-1, 32, 32, 3), np.array(labels, np.int64)


def _check_counts(train, test, classes, folder: Path, official: _Official) -> None:
    """As many images of each class as the official set has."""
    for split, (_, labels), count in (("training", train, NUM_TRAIN), ("test", test, NUM_TEST)):
        each, right = np.bincount(labels, minlength=len(classes)), count // len(classes)
        if (each != right).any():
            odd = int(np.abs(each - right).argmax())
            raise UserError(
                f"{folder} holds {len(labels):,} {split} images, {each[odd]:,} of class {odd} ({classes[odd]}); "
                f"{official.title} has {count:,}, {right:,} of each class. The copy is incomplete or its labels are wrong: "
                "delete it to have it downloaded again, or give data.root=FOLDER of a complete one."
            )


def _contents(train, test) -> str:
    """A digest of all images with their labels and splits, whatever their order: the sum of the digests of each."""
    total = 0
    for split, (images, labels) in enumerate((train, test)):
        for image, label in zip(images.reshape(len(images), -1), labels.tolist(), strict=True):
            total += int.from_bytes(
                hashlib.sha256(bytes((split, label)) + image.tobytes()).digest(), "little"
            )
    return f"{total % 2**256:064x}"


def _canonical(images, labels):
    """The images with their labels in the order of (label, SHA-256 of the pixels)."""
    keys = [
        (label, hashlib.sha256(image.tobytes()).digest())
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], labels[order]


def _read_class_folders(root: Path, official: _Official, verify: bool):
    """(train, test, classes) of train/<class>/* and test/<class>/*; classes are numbered in sorted order."""
    remedy = f"{official.title} has {official.num_classes} classes: complete the copy, or give data.root=FOLDER of another."
    found = read_class_folders(root, remedy)
    classes = sorted(
        found["train"], key=int if all(name.isdigit() for name in found["train"]) else None
    )
    if len(classes) != official.num_classes:
        raise UserError(f"{root} holds {len(classes)} class folders. {remedy}")
    train, test = (_read_images([found[split][name] for name in classes]) for split in SPLITS)
    _check_counts(train, test, classes, root, official)
    if verify and _contents(train, test) != official.contents:
        raise UserError(
            f"{root} has the layout and the counts of {official.title}, but not exactly its images and labels (copies as "
            "JPEG never have). data.verify=false accepts the copy as it is."
        )
    return train, test, classes


def _read_images(classes):
    """The files of each class -> (images uint8 (N, 32, 32, 3), labels int64 (N,)), in the order of classes and names."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = list(
            pool.map(lambda files: np.array([_read_image(file.path) for file in files]), classes)
        )
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _read_image(path: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, pixels = image.size, np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(
            f"{path} cannot be read as an image ({one_line(error)}). Replace or remove it."
        ) from error
    if size != (32, 32):
        raise UserError(
            f"{path} has {size[0]}x{size[1]} pixels; images of CIFAR have 32x32. Is data.root right?"
        )
    return pixels
