"""Decoded images in one memory-mapped file, made once: what a training run reads instead of files.

Two files hold a cache. `<key>.pixels` has the images one after another, uint8 (height, width, 3)
each. `<key>.json` has their sizes and the fingerprint of the files; it is written last, when all
pixels are on the disk, so a cache that has one is complete.
"""

import hashlib
import io
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from lcm.errors import UserError, listed, one_line, plural
from lcm.files import file_lock, write_atomically

VERSION = 3  # of the layout and of how images are decoded
AHEAD = 32  # images that wait in memory, decoded


def decode(data: bytes, short_side: int | None = None) -> Image.Image:
    """The image of a file's bytes, upright as its EXIF orientation says, in RGB.

    Resized to `short_side` as torchvision's Resize does, but never enlarged. None: its own size.
    Raises ValueError, and whatever Pillow raises.
    """
    with Image.open(io.BytesIO(data)) as opened:
        # Pillow would clip grey of 16 bits to 8: nearly every pixel would be white. (Of colours of
        # 16 bits it takes the high byte.)
        if opened.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel; convert it to 8 bits")
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if short_side is not None and min(image.size) > short_side:
        from torchvision.transforms.v2.functional import resize  # torchvision takes a second

        image = resize(image, [short_side])
    return image


class ImageCache:
    """The open cache.

    sizes        int64 (N, 2): height and width of each image
    fingerprint  a digest of the files' names and contents, and of the size that is kept
    """

    def __init__(self, pixels: Path, sizes: np.ndarray, fingerprint: str):
        self.sizes, self.fingerprint = sizes, fingerprint
        # Counted in pixels, rows of `_pixels`.
        self._ends = np.cumsum(sizes.prod(1))
        # Copy-on-write: never written, but torch wants an array that may be.
        # asarray: a slice of numpy's own memmap takes several times as long.
        self._pixels = np.asarray(np.memmap(pixels, np.uint8, "c", shape=(int(self._ends[-1]), 3)))

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 (height, width, 3), a view of the file."""
        height, width = self.sizes[i]
        end = self._ends[i]
        return self._pixels[end - height * width : end].reshape(height, width, 3)


def open_cache(files: dict[str, str], folder, short_side: int | None) -> ImageCache:
    """The cache of `files` {name: path} in `folder`, made where there is none that is complete.

    One of several processes makes it, the others wait. A file with another size or time of change
    has another cache. Raises `UserError`: images that cannot be decoded (all of them are named), no
    space, no permission.
    """
    folder = Path(folder)
    try:
        # The key is made of what `stat` says, so that a cache is found without reading the
        # images. Their contents are in the fingerprint, which the index has.
        status = [(name, os.stat(path)) for name, path in files.items()]
        stamp = [(name, found.st_size, found.st_mtime_ns) for name, found in status]
        key = hashlib.sha256(repr((VERSION, short_side, stamp)).encode()).hexdigest()[:16]
        pixels, index = folder / f"{key}.pixels", folder / f"{key}.json"
        # Before the lock, for which the folder would have to be writable.
        if (cache := _opened(pixels, index)) is None:
            folder.mkdir(parents=True, exist_ok=True)
            waiting = f"another process is making the image cache {pixels}: waiting for it"
            with file_lock(folder / f"{key}.lock", waiting):
                # Another process may have made it meanwhile.
                if (cache := _opened(pixels, index)) is None:
                    _make(files, pixels, index, short_side)
                    cache = _opened(pixels, index)
        return cache
    except OSError as error:
        raise UserError(
            f"the image cache in {folder} cannot be written or read ({error}). Make room, or "
            "choose another disk: data.cache_dir=FOLDER."
        ) from error


def _opened(pixels: Path, index: Path) -> ImageCache | None:
    """The cache of two files, None where it is not complete."""
    try:
        facts = json.loads(index.read_text())
        sizes = np.array(facts["sizes"], np.int64)
        if pixels.stat().st_size == sizes.prod(1).sum() * 3:
            return ImageCache(pixels, sizes, facts["fingerprint"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        pass
    return None


def _make(files: dict[str, str], pixels: Path, index: Path, short_side) -> None:
    """Decode all images into the pixel file, several at a time."""

    def read(path):
        data = Path(path).read_bytes()
        return np.array(decode(data, short_side)), hashlib.sha256(data).hexdigest()

    sizes, digests = [], []
    # A kill at any point is harmless: there is no index while pixels change, and a new one only
    # after they are on the disk under their name.
    index.unlink(missing_ok=True)
    draft = pixels.with_suffix(f".{socket.gethostname()}.draft")  # no lock may reach other machines
    try:
        with open(draft, "wb") as out:
            label = f"decoding once into {pixels.parent}"
            for image, digest in each(list(files.values()), read, label):
                out.write(image.data)
                sizes.append(image.shape[:2])
                digests.append(digest)
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, pixels)
    finally:
        draft.unlink(missing_ok=True)
    lines = [f"{name} {digest}" for name, digest in zip(files, digests, strict=True)]
    kept = hashlib.sha256(os.fsencode("\n".join([*lines, f"{short_side}"])))
    write_atomically(index, json.dumps({"fingerprint": kept.hexdigest(), "sizes": sizes}).encode())


def each(files: list, work, label: str | None = None):
    """Yield work(file) for each image file, in order, computed in threads.

    Pillow, zlib and reading release Python's lock while they work. `label`: of a progress bar.
    Raises `UserError` at the end, with every file whose work failed, and why.
    """

    def attempt(file):
        try:
            return work(file)
        except Exception as error:  # Pillow raises many kinds
            return error

    bad = []
    # disable=None is tqdm's word for: a bar on a terminal alone.
    hidden = None if label else True
    with ThreadPoolExecutor() as pool, tqdm(files, label, unit="image", disable=hidden) as bar:
        # `map` submits all of its input at once: without slices the threads would run ahead of
        # the reader, and decoded images would fill the memory.
        for start in range(0, len(files), AHEAD):
            some = files[start : start + AHEAD]
            for file, result in zip(some, pool.map(attempt, some), strict=True):
                bar.update()
                # Pillow's own words have an address of memory in them.
                if isinstance(result, UnidentifiedImageError):
                    bad.append(f"{file}: no image")
                elif isinstance(result, Exception):
                    bad.append(f"{file}: {one_line(result)}")
                else:
                    yield result
    if bad:
        raise listed(f"{plural(len(bad), 'image')} cannot be read; replace or remove:", bad)
