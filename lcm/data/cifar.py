"""CIFAR-10 and CIFAR-100: the official files, unofficial copies of them, and class folders of images.

Counts, shapes and labels are always checked, the md5 sums of the official files when asked (`verify`), and pickles are read
by a reader that can run nothing (cifar_pickle.py).
"""

import concurrent.futures
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.data.download import fetch, unpack
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, one_line
from lcm.files import file_lock


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
    num_train: int
    num_test: int
    mean: tuple  # of the training pixels in [0, 1]
    std: tuple
    contents: str  # `_contents` of its images and labels


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
        num_train=50_000,
        num_test=10_000,
        mean=(0.49139967861519607, 0.48215840839460783, 0.44653091444546567),
        std=(0.24703223246328207, 0.2434851280000556, 0.26158784172796445),
        contents="fc17c81660c0d988ce304c7748d3d37d8b05761c15de2c87667a5b1a261b60a9",
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
        num_train=50_000,
        num_test=10_000,
        mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        std=(0.26733428587924074, 0.25643846291708816, 0.276150471325684),
        contents="f76b37c33e355ecbbbfa99a4a2b139df7d2b1ce1e48da04d903807cc1719a699",
    ),
}


class Cifar(ResidentSet):
    """CIFAR-10 or CIFAR-100: 50,000 + 10,000 images of 32x32x3 bytes (A. Krizhevsky, 2009).

    Under `root` it takes the first that is there of
      1. the official archive, unpacked: cifar-10-batches-py/ or cifar-100-python/ (or `root` itself is that folder);
      2. class folders: train/<class>/*.png and test/<class>/*.png;
      3. the official archive, cifar-10-python.tar.gz or cifar-100-python.tar.gz, which is then unpacked beside it;
      4. with `download`, the archive from the first of `places` (addresses) that delivers it.

    `verify` demands the official files (class folders: exactly the official images and labels); without it, copies of the
    same layout and counts will do. Training images are zero-padded by `pad` pixels, cropped to 32x32, and half of them
    mirrored if `mirror`; mean and deviation are those of the official training images. Raises `UserError`.
    """

    def __init__(
        self,
        name,
        num_classes,
        image_size=32,
        root="data",
        workers=0,
        verify=True,
        download=True,
        places=(),
        pad=4,
        mirror=True,
    ):
        if name not in OFFICIAL:
            raise UserError(f"data.name={name}: this class reads {' and '.join(OFFICIAL)}.")
        official = OFFICIAL[name]
        super().__init__(name, num_classes, image_size, workers, pad, mirror, official.num_classes)
        root = Path(root).expanduser()
        try:
            if not (root / official.folder).exists() and (root / "train").is_dir():
                train, test, classes = _read_class_folders(root, official, verify)
            else:
                folder = _official_folder(root, official, verify, download, places)
                train, test, classes = _read_official(folder, official, verify)
        except PermissionError as error:
            raise UserError(
                f"{error.filename or root} may not be read: change its permissions or data.root."
            ) from error
        self.hold(train, test, classes, official.mean, official.std)


def _official_folder(root: Path, official: _Official, verify: bool, download: bool, places) -> Path:
    """The folder with the official files; the archive is unpacked, and downloaded, where there is none yet."""
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

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = file_lock(root / f".{official.archive}.lock", f"{archive}: another process is preparing it; waiting")
        with lock:
            if folder.exists():  # that process has done it
                return folder
            if not archive.is_file():
                fetch(archive, places, official.archive_md5)
            elif verify and (md5 := calculate_md5(archive)) != official.archive_md5:
                raise UserError(
                    f"{archive} ({archive.stat().st_size:,} bytes, md5 {md5}) is not the official archive (md5 "
                    f"{official.archive_md5}). Delete it to have it downloaded; data.verify=false accepts an unofficial copy."
                )
            unpack(archive, folder)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror}). Free some space, or choose a writable folder: data.root=FOLDER."
        ) from error
    return folder


def _read_official(folder: Path, official: _Official, verify: bool):
    """(train, test, classes) of a folder in the official layout."""
    files = official.train | official.test | official.meta

    def read(item):
        path, md5 = folder / item[0], item[1]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); {official.title} consists of {', '.join(files)}. "
                f"Put it there, or delete {folder} to have the archive unpacked or downloaded again."
            ) from error
        return read_cifar_pickle(data, path), hashlib.md5(data, usedforsecurity=False).hexdigest() if verify else md5

    with concurrent.futures.ThreadPoolExecutor() as pool:  # sums and copies leave the interpreter's lock
        records, sums = zip(*pool.map(read, files.items()), strict=True)
    records = dict(zip(files, records, strict=True))
    (meta,) = official.meta
    classes = _class_names(records[meta], folder / meta, official)
    train, test = (
        _join([_batch(records[file], folder / file, official) for file in part])
        for part in (official.train, official.test)
    )
    _check_counts(train, test, classes, folder, official)
    unofficial = [
        f"{folder / file} is not the official file: its md5 is {found}, the official one {md5}."
        for (file, md5), found in zip(files.items(), sums, strict=True)
        if found != md5
    ]
    if unofficial and _contents(train, test) == official.contents:
        raise UserError(
            "\n".join(unofficial)
            + f"\nThis copy holds exactly the images and labels of {official.title}, stored in another "
            "way or order: data.verify=false accepts it."
        )
    if unofficial:
        raise UserError(
            "\n".join(unofficial)
            + f"\nThis copy has the layout and the counts of {official.title}, but not its images and "
            f"labels: it is damaged or altered. Delete {folder} to have the archive unpacked or downloaded again; "
            "data.verify=false accepts the copy as it is."
        )
    return train, test, classes


def _class_names(meta: dict, path: Path, official: _Official) -> list[str]:
    names = meta.get(official.names_key)
    if not isinstance(names, list) or len(names) != official.num_classes:
        raise UserError(
            f"{path} does not hold {official.num_classes} class names as {official.names_key}, it is damaged or not of "
            f"{official.title}. Replace it by the official file."
        )
    return [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]


def _batch(record: dict, path: Path, official: _Official):
    """(planes uint8 (N, 3, 1024), labels int64 (N,)) of one file, their kinds and sizes checked."""
    remedy = f"It is damaged or not of {official.title}: replace it by the official file."
    key = official.labels_key
    if not {"data", key} <= set(record):
        raise UserError(
            f"{path} should hold data and {key}, and holds {', '.join(map(str, record)) or 'nothing'}. {remedy}"
        )
    data, labels = record["data"], record[key]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        found = f"shape {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise UserError(f"{path}: data should be bytes of shape (images, 3072) and is {found}. {remedy}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise UserError(f"{path}: {key} should be a list of {len(data)} whole numbers, one an image. {remedy}")
    if wrong := [label for label in labels if not 0 <= label < official.num_classes]:
        raise UserError(f"{path}: label {wrong[0]} is outside 0..{official.num_classes - 1}. {remedy}")
    return data.reshape(-1, 3, 1024), np.array(labels, np.int64)


def _join(batches):
    """The channel planes of several files -> (images uint8 (N, 32, 32, 3), labels int64 (N,))."""
    labels = np.concatenate([part for _, part in batches])
    images = np.empty((len(labels), 1024, 3), np.uint8)
    start = 0
    for planes, part in batches:
        for channel in range(3):
            images[start : start + len(part), :, channel] = planes[:, channel]
        start += len(part)
    return images.reshape(-1, 32, 32, 3), labels


def _check_counts(train, test, classes, folder: Path, official: _Official) -> None:
    """As many images as the official set has, and the same number of each class."""
    for split, (_, labels), count in (("training", train, official.num_train), ("test", test, official.num_test)):
        if len(labels) != count:
            raise UserError(
                f"{folder} holds {len(labels):,} {split} images; {official.title} has {count:,}. The copy is incomplete or "
                "of another data set: delete it to have it fetched again, or give data.root=FOLDER of a complete one."
            )
        each, right = np.bincount(labels, minlength=len(classes)), count // len(classes)
        if (each != right).any():
            odd = int(np.abs(each - right).argmax())
            raise UserError(
                f"{folder} holds {each[odd]:,} {split} images of class {odd} ({classes[odd]}); {official.title} has "
                f"{right:,} of each. Labels or files are wrong: delete the copy to have it fetched again."
            )


def _contents(train, test) -> str:
    """A digest of all images with their labels and splits, whatever their order: the sum of the digests of each."""
    total = 0
    for split, (images, labels) in enumerate((train, test)):
        for image, label in zip(images.reshape(len(images), -1), labels.tolist(), strict=True):
            total += int.from_bytes(hashlib.sha256(bytes((split, label)) + image.tobytes()).digest(), "little")
    return f"{total % 2**256:064x}"


def _read_class_folders(root: Path, official: _Official, verify: bool):
    """(train, test, classes) of train/<class>/* and test/<class>/*; a class's index is its place in sorted order."""
    train_names, test_names = (_folders(root / split) for split in ("train", "test"))
    for split, names in (("train", train_names), ("test", test_names)):
        if len(names) != official.num_classes:
            raise UserError(
                f"{root / split} has {len(names)} class folders; {official.title} has {official.num_classes}. Expected are "
                f"{split}/<class>/*.png: add what is missing, or give data.root=FOLDER of a complete copy."
            )
    if odd := set(train_names) ^ set(test_names):
        raise UserError(f"{root}: the class folder {min(odd)!r} is in only one of train/ and test/. Rename or add it.")
    classes = sorted(train_names, key=int) if all(name.isdigit() for name in train_names) else train_names
    train, test = (_read_images(root / split, classes) for split in ("train", "test"))
    _check_counts(train, test, classes, root, official)
    if verify and _contents(train, test) != official.contents:
        raise UserError(
            f"{root} has the layout and the counts of {official.title}, but not exactly its images and labels (copies as "
            "JPEG never have). data.verify=false accepts the copy as it is."
        )
    return train, test, classes


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _read_images(folder: Path, classes: list[str]):
    """(images uint8 (N, 32, 32, 3), labels int64 (N,)), in the order of classes and names."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = list(pool.map(_read_folder, [folder / name for name in classes]))
    return np.concatenate(parts), np.repeat(np.arange(len(classes)), [len(part) for part in parts])


def _read_folder(folder: Path) -> np.ndarray:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    return np.array([_read_image(file) for file in files], np.uint8).reshape(-1, 32, 32, 3)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, pixels = image.size, np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"{path} cannot be read as an image ({one_line(error)}). Replace or remove it.") from error
    if size != (32, 32):
        raise UserError(f"{path} has {size[0]}x{size[1]} pixels; images of CIFAR have 32x32. Is data.root right?")
    return pixels
