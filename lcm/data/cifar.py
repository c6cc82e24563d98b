"""CIFAR-10 and CIFAR-100 in whatever container: pickles, official or not, or folders of PNG files.

The content decides: exactly the official images with their labels are verified. Pickles are read
without running the code in them (cifar_pickle.py).
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.data.download import fetch, unpack
from lcm.data.folder import list_images, read_in_memory
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError
from lcm.files import file_lock

IMAGES = {"train": 50_000, "test": 10_000}  # of each of the two sets


# The official archives (https://www.cs.toronto.edu/~kriz/cifar.html) and their images.
OFFICIAL = {
    "cifar10": SimpleNamespace(
        title="CIFAR-10",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),  # names of files
        test=("test_batch",),
        meta="batches.meta",
        labels_key="labels",
        names_key="label_names",
        num_classes=10,
        # of the training pixels in [0, 1]
        mean=(0.49139967861519607, 0.48215840839460783, 0.44653091444546567),
        std=(0.24703223246328207, 0.2434851280000556, 0.26158784172796445),
        # `_contents` of its images and labels
        contents="fc17c81660c0d988ce304c7748d3d37d8b05761c15de2c87667a5b1a261b60a9",
        # whether images are held in the order of `_canonical`; the first records have a copy's own
        sorted=False,
    ),
    "cifar100": SimpleNamespace(
        title="CIFAR-100",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
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
      1. the unpacked archive: cifar-10-batches-py/ or cifar-100-python/, also one folder deeper, or
         `root` itself;
      2. class folders with the right numbers of images: train/<class>/* and test/<class>/*;
      3. the archive, cifar-10-python.tar.gz or cifar-100-python.tar.gz, unpacked beside it;
      4. with `download`, the archive from the first mirror of `places` that delivers it.

    `verify` accepts only the official images with their labels, whatever their order and container;
    without it, copies with the same layout and counts are accepted. CIFAR-100 is held in an order
    of its own (label, then SHA-256 of the pixels), so that every exact copy gives the same batches;
    CIFAR-10 in the copy's order. The mean and the deviation are those of the official training
    images. Raises `UserError`.
    """

    def __init__(self, name, num_classes, image_size, root, verify, download, places, pad, mirror):
        super().__init__(name, num_classes, image_size, pad, mirror)
        # by the classes: a file of one's own that extends these has a name of its own
        official = OFFICIAL["cifar100" if num_classes > 10 else "cifar10"]
        root = Path(root).expanduser()
        try:
            train, test, classes, place = _read(root, official, download, places)
        except OSError as error:
            raise UserError(
                f"{error.filename or root} cannot be read or written ({error.strerror}). Move an "
                "incomplete folder away to unpack or download the archive; else make room, change "
                "permissions, or choose another folder: data.root=FOLDER."
            ) from error
        counts = {"train": len(train[1]), "test": len(test[1])}
        if (counts, len(classes)) != (IMAGES, num_classes):
            here, whole = ("{train:,} + {test:,}".format(**each) for each in (counts, IMAGES))
            raise UserError(
                f"{place} holds {here} images in {len(classes)} classes; {official.title} has "
                f"{whole} in {num_classes}: it is incomplete or another set. Move it away to "
                "unpack or download the archive, or choose another folder: data.root=FOLDER."
            )
        if verify and _contents(train, test) != official.contents:
            raise UserError(
                f"{place} does not have exactly the images and labels of {official.title}: it is "
                "damaged or altered (JPEG copies always are). Move it away to unpack "
                "or download the archive; data.verify=false accepts the copy as it is."
            )
        if official.sorted:
            train, test = _canonical(*train), _canonical(*test)
        self.hold(train, test, classes, official.mean, official.std)


def _read(root: Path, official, download: bool, places):
    """(train, test, classes, where they were found), of the first place that has them."""
    folder = root / official.folder
    # Not in hidden folders: while another process unpacks, its draft has part of such a folder.
    # Sorted: of several copies it is always the same one.
    for place in (folder, *sorted(root.glob(f"[!.]*/{official.folder}")), root):
        # Any file: an incomplete copy is refused, not passed over. Files alone: `train`, the
        # file of CIFAR-100, is a folder where `root` holds class folders.
        if any((place / file).is_file() for file in official.train):
            return *_read_batches(place, official), place
    # An official folder that lacks its files is damaged, and named below.
    if (root / "train").is_dir() and not folder.exists():
        try:
            found, _ = list_images(root)
        except UserError:  # the folders of another set
            found = {half: {} for half in IMAGES}
        counts = [sum(map(len, half.values())) for half in found.values()]
        # The official classes are in alphabetical order: folders sorted by name, or by number,
        # give the official labels.
        if (counts, len(found["train"])) == ([*IMAGES.values()], official.num_classes):
            return *read_in_memory(found, 32), list(found["train"]), root
    if not folder.exists():
        _unpack_archive(root, official, download, places)
    return *_read_batches(folder, official), folder


def _unpack_archive(root: Path, official, download: bool, places) -> None:
    """Unpack the archive under `root`, downloaded where it is not there."""
    folder, archive = root / official.folder, root / official.archive
    if not (download or archive.is_file()):
        raise UserError(
            f"{official.title} is not under {root.absolute()}: there is no folder "
            f"{official.folder}, no train/<class>/ and test/<class>/ with its 50,000 + 10,000 "
            f"images, and no {official.archive}. Set data.root=FOLDER to the folder that holds one "
            "of them, or data.download=true."
        )
    root.mkdir(parents=True, exist_ok=True)
    waiting = f"{archive}: another process is preparing it; waiting"
    with file_lock(root / f".{official.archive}.lock", waiting):
        if folder.exists():  # that process has unpacked it
            return
        if not archive.is_file():
            fetch(archive, places, official.archive_md5)
        unpack(archive, folder)


def _read_batches(folder: Path, official):
    """(train, test, classes) of a folder in the official layout."""
    files = (*official.train, *official.test, official.meta)
    records = {file: read_cifar_pickle(folder / file) for file in files}
    names = records[official.meta].get(official.names_key)
    if not isinstance(names, list) or len(names) != official.num_classes:
        raise UserError(
            f"{folder / official.meta} does not hold {official.num_classes} class names as "
            f"{official.names_key}: it is damaged or not of {official.title}. Replace it by the "
            "official file."
        )
    classes = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    halves = []
    for half in (official.train, official.test):
        batches = [_batch(records[file], folder / file, official) for file in half]
        halves.append(tuple(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    return *halves, classes


def _batch(record: dict, path: Path, official):
    """(images uint8 (N, 32, 32, 3), labels int64 (N,)) of one file, types and sizes checked."""
    data, labels = record.get("data"), record.get(official.labels_key)
    if not (
        isinstance(data, np.ndarray)
        and isinstance(labels, list)
        and data.shape == (len(labels), 3072)
        and all(type(label) is int and 0 <= label < official.num_classes for label in labels)
    ):
        raise UserError(
            f"{path} does not hold data (N, 3072) and {official.labels_key}, N integers from 0 to "
            f"{official.num_classes - 1}: it is damaged or not of {official.title}. Replace it by "
            "the official file."
        )
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # from planes of red, green, blue
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _contents(train, test) -> str:
    """A digest of all images, labels and splits, whatever their order: a sum of digests."""
    # A record is (split, label, pixels): a wrong label or an image in the other split shows. A
    # sum, not XOR, in which equal records would cancel: CIFAR-100 has some.
    total = 0
    for split, (images, labels) in enumerate((train, test)):
        for image, label in zip(images.reshape(len(images), -1), labels.tolist(), strict=True):
            digest = hashlib.sha256(bytes((split, label)) + image.tobytes()).digest()
            total += int.from_bytes(digest, "little")
    return f"{total % 2**256:064x}"


def _canonical(images, labels):
    """The images with their labels in the order of (label, SHA-256 of the pixels)."""
    keys = [
        (label, hashlib.sha256(image.tobytes()).digest())
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    # Records of equal keys are equal byte for byte: which of them comes first changes nothing.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], labels[order]
