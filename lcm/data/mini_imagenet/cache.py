"""Decoded images in one memory-mapped file, made once: what a training run reads instead of JPEG files.

Two files hold a cache. `<key>.pixels` has the images one after another, uint8 (height, width, 3) each. `<key>.index` is an
int64 table of a header row and one row (height, width, 1) an image; it is written last, when all pixels are on the disk. A
cache with an index is complete, and opening one checks the index and the size of the pixel file, not the pixels.
"""

import concurrent.futures
import errno
import hashlib
import io
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lcm.errors import UserError, listed, one_line
from lcm.files import file_lock, write_atomically

VERSION = 1  # of the layout and of how images are decoded
CHANNELS = 3


def cached_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """The size at which an image is kept: short side `short_side` as torchvision's Resize rounds it, never enlarged.

    None: its own size.
    """
    if short_side is None or min(height, width) <= short_side:
        return height, width
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def decode(path, short_side: int | None, sha256=None) -> np.ndarray:
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
        return self.pixels[self.starts[i] : self.starts[i] + height * width].reshape(
            height, width, CHANNELS
        )


def open_cache(files, key: str, folder, short_side: int | None, digests=None) -> ImageCache:
    """The cache of `files` (N image paths) in `folder`, made where there is none that is complete.

    `key` names the cache and must change when a file or `short_side` does. `digests`: the files' SHA-256, checked in decoding.
    One of several processes makes the cache, the others wait. Raises `UserError`: images that cannot be decoded (all of them
    are named), no space, no permission.
    """
    folder = Path(folder)
    pixels, index = folder / f"{key}.pixels", folder / f"{key}.index"
    try:
        sizes = _read_index(index, pixels, len(files))
        if sizes is None:
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(
                folder / f"{key}.lock",
                f"another process makes the image cache {pixels}: waiting for it",
            ):
                sizes = _read_index(
                    index, pixels, len(files)
                )  # another process may have made it meanwhile
                if sizes is None:
                    sizes = _make(files, pixels, index, short_side, digests or [None] * len(files))
                    for other in sorted(set(folder.glob("*.pixels")) - {pixels}):
                        size = f"{other.stat().st_size / 1e9:.1f} GB"
                        print(
                            f"{other} ({size}) is another cache; delete it if no other setting or copy uses it"
                        )
    except OSError as error:
        remedy = "Make room, choose another disk with data.cache_dir=FOLDER, or do without: data.cache=false."
        raise UserError(
            f"the image cache in {folder} cannot be written or read ({error}). {remedy}"
        ) from error
    return ImageCache(pixels, sizes)


def _header(sizes) -> list[int]:
    return [VERSION, len(sizes), zlib.crc32(np.ascontiguousarray(sizes).data)]


def _read_index(index: Path, pixels: Path, images: int):
    """The sizes of all images, int64 (N, 2), or None where there is no complete cache."""
    if not (index.is_file() and pixels.is_file()) or index.stat().st_size != (1 + images) * 24:
        return None
    table = np.fromfile(index, np.int64).reshape(-1, 3)
    header, sizes, ones = table[0], table[1:, :2], table[1:, 2]
    complete = header.tolist() == _header(sizes) and ones.all()
    return sizes if complete and pixels.stat().st_size == sizes.prod(1).sum() * CHANNELS else None


def _make(files, pixels: Path, index: Path, short_side, digests) -> np.ndarray:
    """Decode all images into the pixel file, several at a time; returns their sizes, int64 (N, 2)."""

    def measure(i):
        with Image.open(files[i]) as image:
            return cached_size(image.height, image.width, short_side)

    def fill(i):
        out[starts[i] : starts[i] + lengths[i]] = decode(files[i], short_side, digests[i]).reshape(
            -1
        )

    remedy = "replace them, or run scripts/prepare_mini_imagenet.py on the copy"
    sizes = np.array(for_each(files, measure, remedy), np.int64)
    lengths = sizes.prod(1) * CHANNELS
    starts, total = np.cumsum(lengths) - lengths, int(lengths.sum())
    index.unlink(missing_ok=True)
    pixels.unlink(missing_ok=True)  # incomplete, or of an older layout
    draft = pixels.with_suffix(".draft")
    try:
        with open(draft, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, total) if hasattr(
                os, "posix_fallocate"
            ) else file.truncate(total)
        out = np.memmap(draft, np.uint8, "r+", shape=(total,))
        for_each(files, fill, remedy, f"decoding once into {pixels.parent} ({total / 1e9:.1f} GB)")
        out.flush()
        os.replace(draft, pixels)
    finally:
        draft.unlink(missing_ok=True)
    table = np.ones((1 + len(files), 3), np.int64)
    table[0], table[1:, :2] = _header(sizes), sizes
    write_atomically(index, table.tobytes())
    return sizes


def for_each(files, work, remedy: str, label: str | None = None) -> list:
    """work(i) for each file i, in as many threads as there are processors, with a progress bar where it has a label.

    Pillow, zlib and reading release Python's lock while they work. Raises `UserError` with every file whose work failed, why,
    and `remedy`; OSError at once where the disk is full.
    """

    def attempt(i):
        try:
            return work(i)
        except Exception as error:  # Pillow raises many kinds
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            return error

    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    pool = concurrent.futures.ThreadPoolExecutor(processors)
    try:
        done = pool.map(attempt, range(len(files)))
        results = list(tqdm(done, label, len(files), unit="image", disable=None if label else True))
    finally:
        pool.shutdown(cancel_futures=True)
    bad = [
        f"{file}: {one_line(r)}"
        for file, r in zip(files, results, strict=True)
        if isinstance(r, Exception)
    ]
    if bad:
        raise listed(f"{len(bad)} images cannot be decoded; {remedy}:", bad)
    return results
