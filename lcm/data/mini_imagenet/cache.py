"""Decoded images in one memory-mapped file, made once: what a training run reads instead of JPEG files.

Two files hold a cache. `<key>.pixels` has the images one after another, uint8 (height, width, 3) each. `<key>.index` is an
int64 table of a head row and one row (height, width, mark) an image; the mark is 0 until the image's bytes lie in the pixel
file, then 2^32 + their CRC-32. An image counts as there only if its bytes give its mark: so an interrupted cache is
continued, and a damaged image is found when the cache is opened and decoded again.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lcm.errors import UserError

VERSION = 1  # of the layout and of how images are decoded
CHANNELS = 3


def cached_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size at which an image is kept: short side `short_side` as torchvision's Resize rounds it, never enlarged."""
    if min(height, width) <= short_side:
        return height, width
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def decode(path, short_side: int, sha256=None) -> np.ndarray:
    """An image file -> uint8 (height, width, 3), brought to `cached_size` by Pillow's antialiased bilinear filter.

    Greyscale, palette and CMYK images are converted to RGB. Raises ValueError where the file's SHA-256 is another, and
    whatever Pillow raises for a file it cannot decode.
    """
    data = Path(path).read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("not the file that the manifest describes: its SHA-256 is another")
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    height, width = cached_size(image.height, image.width, short_side)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


class ImageCache:
    """The open cache.

    pixels  uint8 (P, 3): the pixels of all images, mapped into memory
    sizes   int64 (N, 2): height and width of each image
    starts  int64 (N,): where an image begins in `pixels`
    """

    def __init__(self, pixels: Path, sizes: np.ndarray):
        self.sizes = sizes
        ends = np.cumsum(sizes.prod(1))
        self.starts = ends - sizes.prod(1)
        # Copy-on-write: never written, but torch wants an array that may be. As a plain array, slices of it are cheap.
        self.pixels = np.asarray(np.memmap(pixels, np.uint8, "c", shape=(int(ends[-1]), CHANNELS)))

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 (height, width, 3), a view of the file."""
        height, width = self.sizes[i]
        return self.pixels[self.starts[i] : self.starts[i] + height * width].reshape(height, width, CHANNELS)


def open_cache(files, key: str, folder, short_side: int, digests=None) -> ImageCache:
    """The cache of `files` (N image paths) under `folder`: opened and checked, and made, continued or mended where needed.

    `key` names the cache and must change when a file or `short_side` does. `digests`: the files' SHA-256, checked when they are
    decoded. Processes that want the same cache at the same
    time take turns: one makes it, the others wait. Raises UserError: an unreadable image (all of them are named), no space,
    no permission.
    """
    if not hasattr(os, "pread"):
        raise UserError(
            "the image cache needs Linux or macOS; here the files can be read one by one: data.cache=false."
        )
    folder = Path(folder)
    pixels, index = folder / f"{key}.pixels", folder / f"{key}.index"
    try:
        table = _read_index(index, len(files))
        if table is None or _missing(pixels, table).size:
            folder.mkdir(parents=True, exist_ok=True)
            with _turn(folder / f"{key}.lock"):
                table = _read_index(index, len(files))  # another process may have made it meanwhile
                if table is None:
                    table = _measure(files, short_side)
                    _write_index(index, table)
                missing = _missing(pixels, table)
                if missing.size:
                    _fill(files, missing, pixels, index, table, short_side, digests or [None] * len(files))
    except OSError as error:
        raise UserError(_os_message(error, folder)) from error
    return ImageCache(pixels, table[1:, :2])


def _head(table) -> np.ndarray:
    return np.array([VERSION, len(table) - 1, zlib.crc32(np.ascontiguousarray(table[1:, :2]).data)], np.int64)


def _read_index(path: Path, images: int):
    """The index table int64 (1 + N, 3), or None where there is none that fits."""
    try:
        table = np.fromfile(path, np.int64)
    except FileNotFoundError:
        return None
    if table.size != (1 + images) * 3:
        return None
    table = table.reshape(-1, 3)
    return table if np.array_equal(table[0], _head(table)) else None


def _write_index(path: Path, table) -> None:
    draft = path.with_suffix(".draft")
    with open(draft, "wb") as file:
        file.write(table.tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _measure(files, short_side: int) -> np.ndarray:
    """A fresh index: the sizes from the files' heads, nothing marked as there."""

    def measure(path):
        try:
            with Image.open(path) as image:
                return cached_size(image.height, image.width, short_side)
        except Exception as error:  # Pillow raises many kinds
            return _fault(path, error)

    with _crew() as crew:
        sizes = list(crew.map(measure, files))
    _raise_faults(sizes)
    table = np.zeros((1 + len(files), 3), np.int64)
    table[1:, :2] = sizes
    table[0] = _head(table)
    return table


def _missing(path: Path, table) -> np.ndarray:
    """Which images are not there yet or not as they were written: their numbers, int64."""
    sizes, marks = table[1:, :2].prod(1) * CHANNELS, table[1:, 2]
    ends = np.cumsum(sizes)
    there = np.flatnonzero(marks)
    if not path.exists() or not there.size:
        return np.arange(len(sizes))
    length = path.stat().st_size
    with open(path, "rb") as file:

        def intact(i):
            return ends[i] <= length and _mark(os.pread(file.fileno(), sizes[i], ends[i] - sizes[i])) == marks[i]

        parts = np.array_split(there, len(there) // 64 + 1)  # an image alone is too little work for a job
        with _crew() as crew:
            found = [i for part in crew.map(lambda part: list(filter(intact, part)), parts) for i in part]
    return np.setdiff1d(np.arange(len(sizes)), found)


def _mark(data) -> int:
    return (1 << 32) + zlib.crc32(data)


def _fill(files, missing, pixels: Path, index: Path, table, short_side: int, digests) -> None:
    """Decode the images `missing` into the pixel file, several at a time, marking each in the index and in `table`."""
    sizes = table[1:, :2].prod(1) * CHANNELS
    starts = np.cumsum(sizes) - sizes
    present = len(files) - len(missing)
    needed = int(sizes[missing].sum())
    if present:
        print(f"image cache {pixels}: {present:,} of {len(files):,} images are in order, the rest is decoded now")
    mode = os.O_RDWR | os.O_CREAT
    with contextlib.ExitStack() as files_open:
        pixel_file, index_file = (os.open(path, mode, 0o666) for path in (pixels, index))
        for descriptor in (pixel_file, index_file):
            files_open.callback(os.close, descriptor)
        status = os.fstat(pixel_file)
        reserved = max(0, int(sizes.sum()) - status.st_blocks * 512) if hasattr(status, "st_blocks") else needed
        _demand_space(pixels.parent, min(needed, reserved))
        os.ftruncate(pixel_file, int(sizes.sum()))

        def fill(i):
            try:
                data = decode(files[i], short_side, digests[i])
                if list(data.shape[:2]) != table[1 + i, :2].tolist():
                    raise ValueError(f"its size changed to {data.shape[1]}x{data.shape[0]}")
            except Exception as error:  # Pillow raises many kinds
                return _fault(files[i], error)
            _write_all(pixel_file, data.tobytes(), int(starts[i]))
            table[1 + i, 2] = _mark(data.tobytes())
            _write_all(index_file, table[1 + i].tobytes(), (1 + int(i)) * table[0].nbytes)

        label = f"decoding once into {pixels.parent} ({sizes.sum() / 1e9:.1f} GB)"
        with _crew() as crew, tqdm(total=len(files), initial=present, desc=label, unit="image", disable=None) as bar:
            faults = []
            for fault in crew.map(fill, missing):
                faults.append(fault)
                bar.update()
        os.fsync(pixel_file)
        os.fsync(index_file)
    _raise_faults(faults)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _demand_space(folder: Path, needed: int) -> None:
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed, {status.f_bavail * status.f_frsize / 1e9:.1f} free"
        )


def _os_message(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space for the image cache in {folder} ({error.strerror}). Make room, choose another disk with "
            "data.cache_dir=FOLDER, or do without: data.cache=false. Images decoded so far are kept."
        )
    return (
        f"the image cache in {folder} cannot be written or read ({error}). Choose another place: data.cache_dir=FOLDER."
    )


def _fault(path, error: Exception) -> str:
    return f"{path}: {type(error).__name__}: {error}"


def _raise_faults(results) -> None:
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        raise UserError(
            f"{len(faults)} images cannot be decoded; replace them, or run scripts/prepare_mini_imagenet.py on the copy:\n  "
            + "\n  ".join(faults)
        )


@contextlib.contextmanager
def _crew():
    """As many threads as there are processors: Pillow, zlib and reading leave Python's lock alone while they work."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crew = concurrent.futures.ThreadPoolExecutor(processors)
    try:
        yield crew
    finally:
        crew.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _turn(path: Path):
    """Hold an exclusive lock on a file, which the system drops when its holder dies."""
    import fcntl

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process makes the image cache {path.parent}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
