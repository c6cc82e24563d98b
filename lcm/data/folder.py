"""Images in class folders: one's own, PNG copies of CIFAR, mini-ImageNet.

Up to `IN_MEMORY` pixels a set is held in memory and augmented like CIFAR (in_memory.py): the short
side is resized to `image_size` and the central square taken, once; mean and deviation are those of
the training images. Larger images are augmented like ImageNet (photographs.py).
"""

import hashlib
import os
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lcm.data.image_cache import decode, each
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, listed, printable

IN_MEMORY = 64  # pixels of an image's side
TEST = ("test", "val", "validation")  # names of the test images' folder, the first that is there
IGNORED = ("Thumbs.db", "desktop.ini", "__MACOSX")  # written by file managers
LAYOUT = (
    "Expected are train/ and test/ (or val/, validation/) with class folders of images, or "
    "class folders alone, of which about data.test_share becomes the test set (docs/data.md; "
    "scripts/prepare_mini_imagenet.py prepares mini-ImageNet)."
)


def class_folders(
    name,
    num_classes,
    image_size,
    root,
    workers=None,
    pad=4,
    mirror=True,
    test_share=None,
    label=None,
    cache_dir=None,
    cache_size=256,
    complete=None,
):
    """The data set of the class folders under `root`: a `ResidentSet`, or `Photographs`.

    num_classes  None: as many as there are; otherwise the most that are accepted
    workers      loader processes of large images; None: one per processor, at most 4
    pad          of a set in memory
    test_share   share of the images for the test where `root` has no test folder
    label        the name of the set in paths and tables; None: `name`
    cache_...    of `Photographs`
    complete     [training, test] images of the whole set; `notes` name a copy with others
    Raises `UserError`.
    """
    found, unused = list_images(root, test_share)
    files, notes = files_digest(found), []
    classes = list(found["train"])
    if num_classes is not None and len(classes) > num_classes:
        raise UserError(
            f"{root} holds {len(classes)} classes and {name} has {num_classes}: this is another "
            "data set; data=folder takes any."
        )
    counts = [sum(map(len, half.values())) for half in found.values()]
    if complete is not None and (len(classes), counts) != (num_classes, complete):
        here, whole = ("{:,} training and {:,} test images".format(*n) for n in (counts, complete))
        notes.append(
            f"not the whole of {name}: {len(classes)} classes, {here}, where the whole has "
            f"{num_classes} classes, {whole}; accuracies are not those of the whole"
        )
    facts = (label or name, num_classes or len(classes), image_size)
    if image_size <= IN_MEMORY:
        data = ResidentSet(*facts, pad, mirror)
        train, test = read_in_memory(found, image_size)
        data.hold(train, test, classes, *statistics(train[0]))
    else:
        from lcm.data.photographs import Photographs  # torchvision takes a second

        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        cache_dir = _outside(root, cache_dir)
        data = Photographs(*facts, mirror, found, workers, cache_dir, cache_size)
        height, width = sorted(data.cache.sizes.tolist(), key=min)[len(data.labels) // 2]
        if min(height, width) < image_size:
            notes.append(
                f"low resolution: images of {width}x{height}, where the network sees {image_size}x"
                f"{image_size}; every view is enlarged, and accuracies do not compare with those "
                "of full-size images"
            )
    data.notes, data.unused, data.files = notes, unused, files
    return data


def _outside(root, cache_dir) -> Path:
    """The folder of the cache. Raises UserError where the next run would take it for images."""
    place = Path(cache_dir or Path(root) / ".cache").expanduser()
    home = Path(root).expanduser().resolve()
    if place.resolve().is_relative_to(home):
        within = place.resolve().relative_to(home).parts
        if not within or not within[0].startswith("."):
            raise UserError(
                f"data.cache_dir={place} is among the images of {root}: choose a folder "
                "elsewhere, or null"
            )
    return place


def files_digest(found) -> str:
    """A digest of the classes, names and sizes of `list_images`' files; it opens none of them."""
    # Kept in run.json: a later command sees changed files without reading a pixel.
    lines = [
        f"{half}/{name}/{path.name} {path.stat().st_size}"
        for half, classes in found.items()
        for name, files in classes.items()
        for path in files
    ]
    return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and those of file managers."""
    return sorted(
        p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in IGNORED
    )


def list_images(root, test_share: float | None = None):
    """({"train": {class: [path, ...]}, "test": {...}}, [a line that names what is not used]).

    Classes in the order of their names, or of their numbers where all are numbers. Whether a file
    is an image is found when it is decoded. Raises `UserError` with everything that is wrong.
    """
    if root is None:
        raise UserError(f"data=folder needs the folder of the images: data.root=FOLDER. {LAYOUT}")
    root = Path(root).expanduser()
    problems, unused = [], []
    train, test = {}, {}
    top, loose = _sorted_out(root, problems)
    halves = [name for name in ("train", *TEST) if name in top]
    if "train" in top and len(halves) > 1:
        (train, in_train), (test, in_test) = (
            _sorted_out(top[half], problems) for half in halves[:2]
        )
        train, test = _classes(train, problems), _classes(test, problems)
        loose += [*in_train, *in_test, *(top[name] for name in set(top) - set(halves[:2]))]
    elif test_share is not None:
        # Without a share a set has to bring its split, as CIFAR and mini-ImageNet do.
        train, test = _split(_classes(top, problems), test_share)
    if loose:
        names = ", ".join(sorted(str(path.relative_to(root)) for path in loose))
        unused.append(f"not used: {printable(textwrap.shorten(names, 200))}")
    names = sorted(train.keys() | test.keys())
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    problems += [
        f"{name}: no {half} images"
        for half, classes in (("training", train), ("test", test))
        for name in names
        if not classes.get(name)
    ]
    if len(names) < 2:
        problems.append(f"classes: {names[0] if names else 'none'}; a network needs at least two")
    if problems:
        raise listed(f"{root} cannot be used. {LAYOUT}", problems)
    # One order for both halves: the label of an image is the place of its class.
    halves = {"train": train, "test": test}
    return {half: {n: c[n] for n in names} for half, c in halves.items()}, unused


def _sorted_out(folder: Path, problems: list[str]) -> tuple[dict[str, Path], list[Path]]:
    """({name: folder}, files) that a folder holds; what cannot be read goes to `problems`."""
    try:
        found = entries(folder)
        broken = [path for path in found if not path.exists()]
        problems += [f"{path} cannot be read (a broken link)" for path in broken]
    except OSError as error:
        problems.append(f"{folder} cannot be read ({error.strerror})")
        found = []
    folders = {path.name: path for path in found if path.is_dir()}
    return folders, [path for path in found if path.name not in folders]


def _classes(folders: dict[str, Path], problems: list[str]) -> dict[str, list[Path]]:
    """{class: its files}."""
    classes = {}
    for name, path in folders.items():
        inner, classes[name] = _sorted_out(path, problems)
        problems += [f"{below} is a folder inside a class folder" for below in inner.values()]
    return classes


def _share(path: Path) -> float:
    """A number in [0, 1) that depends on an image's class and name alone."""
    # Not `hash`: its values for text change from process to process.
    digest = hashlib.sha256(os.fsencode(f"{path.parent.name}/{path.name}")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split(classes: dict, test_share: float) -> tuple[dict, dict]:
    """(training, test) files of each class: images that are added later move no other."""
    train = {name: [f for f in files if _share(f) >= test_share] for name, files in classes.items()}
    test = {name: [f for f in files if _share(f) < test_share] for name, files in classes.items()}
    return train, test


def read_in_memory(found, side: int):
    """`list_images`' files as two pairs, train and test, in that order.

    Each is (images uint8 (N, side, side, 3), labels int64 (N,)).
    """
    paths = [path for classes in found.values() for files in classes.values() for path in files]
    # All files at once: the UserError then names the bad ones of both halves.
    images = read_squares(paths, side)
    train, test = (
        np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
        for classes in found.values()
    )
    return (images[: len(train)], train), (images[len(train) :], test)


def read_squares(files, side: int) -> np.ndarray:
    """The largest centred square of each image file, resized: uint8 (N, side, side, 3).

    Raises `UserError` with every file that cannot be read.
    """

    def read(file):
        image = decode(Path(file).read_bytes())
        # An image of this size is copied, not resampled: PNG copies of CIFAR stay exact.
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))

    return np.stack(list(each(files, read)))


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of uint8 (N, H, W, 3), as shares of 255."""
    # By counting how often each level occurs, (3, 256): whole numbers are exact in any order,
    # and the images need not be copied as floats.
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(3)])
    mean = counts @ levels / counts.sum(1)
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    # Where all images are of one colour a channel is only shifted.
    return mean, np.where(variance > 0, np.sqrt(variance), 1.0)
