"""The data sets that lie in memory: the embedded digits, CIFAR-10 and CIFAR-100.

Files of others are not trusted: counts, shapes and labels are always checked, the official files' md5 sums when asked, and
the pickles are read by a reader that knows only what those files hold.
"""

import concurrent.futures
import gzip
import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcm.data.batches import Batches, Resident
from lcm.errors import UserError


class _ResidentSet:
    """What `Digits` and `Cifar` share once their arrays are read: names, fingerprint, batches."""

    def _hold(self, train, test, classes, mean, std):
        """train, test: (images uint8 (N, H, W, C), labels int64 (N,)); mean, std: of a training pixel in [0, 1], a channel."""
        self._train, self._test = train, test
        self.classes, self.mean, self.std = classes, mean, std
        digest = hashlib.sha256()
        for array in (*train, *test):
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()

    def train(self, batch_size: int, seed: int) -> Batches:
        """The training images: each epoch in an order, with crops and mirrors, that (seed, epoch) decides."""
        resident = Resident(*self._train, self.mean, self.std, pad=self.pad, mirror=self.mirror, seed=seed)
        return Batches(resident, batch_size, self.workers)

    def test(self, batch_size: int) -> Batches:
        """The test images in their stored order, not augmented."""
        return Batches(Resident(*self._test, self.mean, self.std), batch_size, self.workers)


def _demand(name: str, key: str, given: int, actual: int) -> None:
    if given != actual:
        raise UserError(
            f"data.{key}={given}: {name} has {key}={actual}. Leave data.{key} as configs/data/{name}.yaml has it."
        )


# ------------------------------------------------------------------------------------------------------------ digits


class Digits(_ResidentSet):
    """1,797 handwritten digits, 8x8 pixels of 17 grey levels, brought to 32x32x3 bytes: each pixel becomes a 4x4 square.

    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI repository, 1998), the test part that
    scikit-learn carries. Every fifth image of a class is a test image: 1,442 for training, 355 for the test, whatever the seed.

    `root`: None for scikit-learn's own digits.csv.gz (scikit-learn itself is not imported), or a folder with that file.
    Raises `UserError`.
    """

    def __init__(self, name="digits", num_classes=10, image_size=32, root=None, workers=0, pad=4, mirror=False):
        _demand("digits", "num_classes", num_classes, 10)
        _demand("digits", "image_size", image_size, 32)
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        self.workers, self.pad, self.mirror = workers, pad, mirror
        table = _digits_table(root)  # (1797, 65): 64 pixels, then the digit
        labels = table[:, 64].astype(np.int64)
        grey = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        images = grey.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
        is_test = np.zeros(len(labels), bool)
        for digit in range(10):
            is_test[np.flatnonzero(labels == digit)[4::5]] = True
        train, test = ((images[part], labels[part]) for part in (~is_test, is_test))
        pixels = train[0][..., 0] / 255.0
        self._hold(train, test, [str(d) for d in range(10)], [pixels.mean()] * 3, [pixels.std()] * 3)


def _digits_table(root) -> np.ndarray:
    if root is None:
        package = importlib.util.find_spec("sklearn")  # finds it without importing it
        if package is None:
            raise UserError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
        path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    else:
        path = Path(root, "digits.csv.gz")
    if root is None and not path.is_file():  # a scikit-learn that keeps the file elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.column_stack([digits.data, digits.target]).astype(np.uint8)
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.uint8)
        if table.shape != (1797, 65) or table[:, :64].max() > 16 or table[:, 64].max() > 9:
            raise ValueError(f"a table of shape {table.shape}")
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:
        raise UserError(
            f"{path} is not the table of 1,797 digits that scikit-learn carries ({_short(error)}). "
            "Leave data.root=null and reinstall scikit-learn (pip install --force-reinstall scikit-learn)."
        ) from error
    return table


# ------------------------------------------------------------------------------------------------------------- CIFAR


class _Official(NamedTuple):
    """The files of the official archive (https://www.cs.toronto.edu/~kriz/cifar.html), with their md5 sums."""

    title: str
    archive: str
    archive_md5: str
    archive_bytes: int
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
        archive_bytes=170_498_071,
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
        archive_bytes=169_001_437,
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


class Cifar(_ResidentSet):
    """CIFAR-10 or CIFAR-100: 50,000 + 10,000 images of 32x32x3 bytes (A. Krizhevsky, 2009).

    Under `root` it takes, in this order,
      1. the official archive, unpacked: cifar-10-batches-py/ or cifar-100-python/ (or `root` itself is that folder);
      2. class folders: train/<class>/*.png and test/<class>/*.png, classes in sorted order;
      3. the official archive, cifar-10-python.tar.gz or cifar-100-python.tar.gz, which is then unpacked beside it;
      4. with `download`, the archive fetched from the first of `places` (addresses) that has it.

    `verify` demands the official files (md5; class folders: the same images and labels); False also takes copies with the
    same layout and counts. Training images are zero-padded by `pad`, cropped to 32x32, half of them mirrored (`mirror`).
    Raises `UserError`.
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
            raise UserError(f"data.name={name}: lcm.data.Cifar reads {' and '.join(OFFICIAL)}.")
        official = OFFICIAL[name]
        _demand(name, "num_classes", num_classes, official.num_classes)
        _demand(name, "image_size", image_size, 32)
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        self.workers, self.pad, self.mirror = workers, pad, mirror
        root = Path(root).expanduser()
        if (root / "train").is_dir() and not (root / official.folder).is_dir():
            train, test, classes = _read_class_folders(root, official, verify)
        else:
            train, test, classes = _read_official(_official_folder(root, official, download, places), official, verify)
        self._hold(train, test, classes, official.mean, official.std)


def _official_folder(root: Path, official: _Official, download: bool, places) -> Path:
    """The folder with the official files; unpacks or fetches the archive where there is none yet."""
    for folder in (root / official.folder, root):
        if any((folder / file).is_file() for file in official.train | official.test | official.meta):
            return folder
    raise UserError(f"{official.title} is not under {root}")


def _read_official(folder: Path, official: _Official, verify: bool):
    """(train, test, classes) of a folder in the official layout."""
    unofficial = []

    def read(file, md5):
        path = folder / file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} is missing or cannot be read ({_short(error)}); {official.title} needs {', '.join(all_files)} in that "
                f"folder. Put it there, or delete {folder} to have the archive unpacked or downloaded again."
            ) from error
        if verify and (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != md5:
            unofficial.append(f"{path} is not the official file: its md5 is {found}, the official one {md5}.")
        return _unpickle(data, path)

    all_files = official.train | official.test | official.meta
    (meta,) = (read(*item) for item in official.meta.items())
    classes = _class_names(meta, folder / next(iter(official.meta)), official)
    train, test = (
        _join([_batch(read(file, md5), folder / file, official) for file, md5 in files.items()])
        for files in (official.train, official.test)
    )
    _check_counts(train, test, classes, folder, official)
    if unofficial:
        if _contents(train, test) == official.contents:
            what = (
                f"This copy holds exactly the images and labels of {official.title}, in another order or another pickle format: "
                "data.verify=false accepts it."
            )
        else:
            what = (
                f"This copy has the layout and the counts of {official.title}, but not its images and labels: it is damaged or "
                f"altered. Delete {folder} to have the archive unpacked or downloaded again; data.verify=false accepts it as it is."
            )
        raise UserError("\n".join([*unofficial, what]))
    return train, test, classes


def _class_names(meta, path: Path, official: _Official) -> list[str]:
    names = meta.get(official.names_key) if isinstance(meta, dict) else None
    if not isinstance(names, list) or len(names) != official.num_classes:
        raise UserError(
            f"{path} does not hold the {official.num_classes} class names of {official.title} under {official.names_key!r}. "
            "It belongs to another data set or is damaged: replace it by the official file."
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _batch(record, path: Path, official: _Official):
    """(planes uint8 (N, 3, 1024), labels (N,)) of one pickle; its kinds and sizes checked."""
    keys = ("data", official.labels_key)
    if not isinstance(record, dict) or not all(key in record for key in keys):
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{path} is no batch of {official.title}: it should hold {' and '.join(keys)}, and holds {found or 'nothing'}. "
            f"Replace it by the official file, or choose the data set it belongs to."
        )
    data, labels = (record[key] for key in keys)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(
            f"{path}: data should be bytes of shape (images, 3072) and is {getattr(data, 'shape', type(data).__name__)}. "
            "Replace it by the official file."
        )
    if not isinstance(labels, list) or not all(type(label) is int for label in labels) or len(labels) != len(data):
        raise UserError(
            f"{path}: {official.labels_key} should be a list of {len(data)} integers, one an image. "
            "Replace it by the official file."
        )
    wrong = [label for label in labels if not 0 <= label < official.num_classes]
    if wrong:
        raise UserError(
            f"{path}: label {wrong[0]} is outside 0..{official.num_classes - 1}. "
            "It belongs to another data set or is damaged: replace it by the official file."
        )
    return data.reshape(-1, 3, 1024), np.array(labels, np.int64)


def _join(batches):
    """Channel planes of several files -> (images uint8 (N, 32, 32, 3), labels int64 (N,))."""
    labels = np.concatenate([labels for _, labels in batches])
    images = np.empty((len(labels), 1024, 3), np.uint8)
    start = 0
    for planes, part in batches:
        for channel in range(3):
            images[start : start + len(part), :, channel] = planes[:, channel]
        start += len(part)
    return images.reshape(-1, 32, 32, 3), labels


def _check_counts(train, test, classes, folder: Path, official: _Official) -> None:
    """As many images as the official set has, the same number of each class."""
    for split, (_, labels), count in (("training", train, official.num_train), ("test", test, official.num_test)):
        if len(labels) != count:
            raise UserError(
                f"{folder} holds {len(labels)} {split} images; {official.title} has {count}. "
                "The copy is incomplete or of another data set: delete it to have it fetched again, or give data.root=FOLDER."
            )
        each = np.bincount(labels, minlength=len(classes))
        if (each != count // len(classes)).any():
            worst = int(np.abs(each - count // len(classes)).argmax())
            raise UserError(
                f"{folder} holds {each[worst]} {split} images of class {worst} ({classes[worst]}); {official.title} has "
                f"{count // len(classes)} of each. Labels are wrong or files are missing: fetch the copy again."
            )


def _contents(train, test) -> str:
    """A digest of the images with their labels and split that does not depend on their order."""
    total = 0
    for split, (images, labels) in enumerate((train, test)):
        for image, label in zip(images.reshape(len(images), -1), labels.tolist(), strict=True):
            total += int.from_bytes(hashlib.sha256(bytes((split, label)) + image.tobytes()).digest(), "little")
    return f"{total % 2**256:064x}"


def _read_class_folders(root: Path, official: _Official, verify: bool):
    """(train, test, classes) of train/<class>/* and test/<class>/*; the index of a class is its place in sorted order."""
    folders = {
        split: sorted(entry.name for entry in (root / split).iterdir() if entry.is_dir())
        if (root / split).is_dir()
        else []
        for split in ("train", "test")
    }
    for split, names in folders.items():
        if len(names) != official.num_classes:
            raise UserError(
                f"{root / split} has {len(names)} class folders; {official.title} has {official.num_classes}. Expected "
                f"{split}/<class>/*.png: add what is missing, or give data.root=FOLDER of a complete copy."
            )
    if folders["train"] != folders["test"]:
        odd = sorted(set(folders["train"]) ^ set(folders["test"]))[0]
        raise UserError(f"{root}: class folder {odd!r} is only in one of train/ and test/. Rename or add it.")
    classes = folders["train"]
    if all(name.isdigit() for name in classes):  # 0, 1, ..., 10 and not 0, 1, 10
        classes = sorted(classes, key=int)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        train, test = (_read_images(root / split, classes, pool) for split in ("train", "test"))
    _check_counts(train, test, classes, root, official)
    if verify and _contents(train, test) != official.contents:
        raise UserError(
            f"{root} has the layout and the counts of {official.title}, but not exactly its images and labels (JPEG files "
            "never have). data.verify=false accepts the copy as it is."
        )
    return train, test, classes


def _read_images(folder: Path, classes: list[str], pool):
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        paths += found
        labels += [label] * len(found)
    images = np.empty((len(paths), 32, 32, 3), np.uint8)
    for place, image in zip(images, pool.map(_read_image, paths, chunksize=64), strict=True):
        place[:] = image
    return images, np.array(labels, np.int64)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, pixels = image.size, np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"{path} cannot be read as an image ({_short(error)}). Remove it or replace it.") from error
    if size != (32, 32):
        raise UserError(f"{path} has {size[0]}x{size[1]} pixels; the images of CIFAR have 32x32. Is data.root right?")
    return pixels


# ------------------------------------------------------------------------------- reading pickles that may be malicious


class _Refused(pickle.UnpicklingError):
    pass


class _Dtype:
    """Stands for numpy.dtype: of bytes, or refused."""

    def __init__(self, code, *_):
        if code not in ("u1", b"u1"):
            raise _Refused(f"an array of type {code!r}")

    def __setstate__(self, state):
        pass


class _Array:
    """Stands for numpy.ndarray: numpy itself sees no more of the file than a block of bytes and a shape."""

    values = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.values = _array(data, dtype, shape, "F" if fortran else "C").values


def _array(data, dtype, shape, order):
    array = _Array()
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise _Refused("an array of something else than bytes")
    array.values = np.frombuffer(data, np.uint8).reshape(shape, order=order)
    return array


def _encode(text, encoding):
    """Stands for _codecs.encode, by which Python 3 writes bytes into old pickles."""
    if encoding not in ("latin1", b"latin1"):
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("numpy._core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    """Reads the records of CIFAR files: lists, dictionaries, numbers, text, and arrays of bytes."""

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]


def _unpickle(data: bytes, path: Path):
    """The record in a CIFAR pickle, its keys as text, its array as uint8. Nothing named in the file is imported or called."""
    try:
        record = _Reader(io.BytesIO(data), encoding="bytes").load()
    except _Refused as error:
        raise UserError(
            f"{path} asks for {error}, which the files of CIFAR never hold: it is refused, nothing of it was run. "
            "Do not use this copy; get the official archive."
        ) from error
    except Exception as error:  # a damaged pickle raises almost anything
        size = "empty" if not data else f"{len(data)} bytes"
        raise UserError(
            f"{path} is damaged: it cannot be read to its end ({size}; {_short(error)}). "
            f"Delete {path.parent} to have the archive unpacked or downloaded again."
        ) from error
    if not isinstance(record, dict):
        return record
    text = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in record.items()}
    return {key: value.values if isinstance(value, _Array) else value for key, value in text.items()}


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")
