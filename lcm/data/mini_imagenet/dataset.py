"""mini-ImageNet at 224 pixels: the data set, its batches from a cache of decoded images, and its plain loader.

Augmentation as in the ImageNet experiments of He et al., "Deep Residual Learning for Image Recognition" (2016), and in
torchvision's reference training: in training a random region is resized to 224x224 and mirrored half of the time; in the test
the short side is resized to 256 and the central 224x224 are cut out.

The cache keeps images at a short side of 256 pixels (smaller ones as they are): test images come out as from the files, but a
region of a 500x375 photograph is cut from 341x256 pixels. Without the cache it is cut from the file's own pixels.
"""

import concurrent.futures
import csv
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lcm.data.in_memory import iterate, keyed_generator, normalise
from lcm.data.mini_imagenet.cache import VERSION, ImageCache, open_cache
from lcm.data.mini_imagenet.copies import IMAGES, LITTER, some
from lcm.data.mini_imagenet.crops import central_views, random_views, show, show_batch
from lcm.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's networks expect
SPLITS = {"train": 500, "test": 100}  # images a class
PREPARE = "scripts/prepare_mini_imagenet.py"


class MiniImageNet:
    """The images of `root`/train/<class>/* and `root`/test/<class>/*; a class's index is its place in sorted order.

    Any such folder will do, also one with fewer classes (`notes` says so). Where scripts/prepare_mini_imagenet.py has left a
    manifest.csv, names and sizes are checked against it and its hash is the fingerprint; otherwise that is a hash of names and
    sizes.

    cache       decode all images once into `cache_dir` (None: `root`/cache) and read them from there; False: read the files
    cache_size  short side of the cached images
    workers     loader processes where cache is False
    notes       what a reader of the results must know: that the copy is small in pixels, or not complete

    Raises UserError: no such folder, classes that differ, images that cannot be read or differ from the manifest.
    """

    def __init__(
        self,
        name="mini_imagenet",
        num_classes=100,
        image_size=224,
        root="data/mini-imagenet",
        workers=0,
        cache=True,
        cache_dir=None,
        cache_size=256,
    ):
        if cache and cache_size < _short_side(image_size):
            raise UserError(
                f"data.cache_size={cache_size}: test images of {image_size} pixels are cut from a short side of "
                f"{_short_side(image_size)}; give at least that."
            )
        root = Path(root).expanduser()
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        files, digests, stamp, self.fingerprint = _listing(root)
        self.classes = sorted({file.split("/")[1] for file in files})
        if len(self.classes) > num_classes:
            raise UserError(
                f"{root} holds {len(self.classes)} classes, and data.num_classes is {num_classes}: this is another data set. "
                f"{PREPARE} makes mini-ImageNet from the copies of it that there are."
            )
        self.notes = _notes(root, files)
        paths = [f"{root}/{file}" for file in files]
        if cache:
            key = hashlib.sha256(f"{VERSION} {cache_size} {stamp}".encode()).hexdigest()[:16]
            self._pictures = CachedPictures(
                open_cache(paths, key, cache_dir or root / "cache", cache_size, digests), image_size
            )
        else:
            self._pictures = FilePictures(paths, image_size)
        self._workers = 0 if cache else workers  # what a loader would assemble from a cache is a few numbers an image
        label = {name: i for i, name in enumerate(self.classes)}
        labels = torch.tensor([label[file.split("/")[1]] for file in files])
        in_training = torch.tensor([file.startswith("train/") for file in files])
        self._parts = {"train": in_training.nonzero()[:, 0], "test": (~in_training).nonzero()[:, 0]}
        self._parts = {split: (index, labels[index]) for split, index in self._parts.items()}

    def train(self, batch_size: int, seed: int) -> "PictureBatches":
        """The training images: each epoch in an order, with regions and mirrors, that (seed, epoch) decides."""
        return PictureBatches(self._pictures, *self._parts["train"], batch_size, self._workers, seed)

    def test(self, batch_size: int) -> "PictureBatches":
        """The test images, sorted by class and name, not augmented."""
        return PictureBatches(self._pictures, *self._parts["test"], batch_size, self._workers)


def _short_side(image_size: int) -> int:
    """The short side that test images are resized to: 256 for 224."""
    return round(image_size / 0.875)


# ------------------------------------------------------------------------------------------------------------- files


class _Listing(NamedTuple):
    files: list[str]  # the images as paths below the root, train/... before test/..., sorted by class and name
    digests: list[str] | None  # their SHA-256 by the manifest
    stamp: str  # changes when a file does
    fingerprint: str  # in hex; the same on every machine


def _listing(root: Path) -> _Listing:
    manifest = root / "manifest.csv"
    if not manifest.exists() and (root / "manifest.partial.csv").exists():
        raise UserError(f"{root} is not finished: {PREPARE} was stopped there. Run the same command again.")
    found = {split: _class_folders(root, split) for split in SPLITS}  # {split: {class: entries}}
    faults = [
        f"{name}: images only in {split}"
        for split, other in (("train", "test"), ("test", "train"))
        for name in sorted(found[split].keys() - found[other].keys())
    ]
    if faults or not found["train"]:
        raise UserError(
            f"{root}: train and test must hold images of the same classes; {'; '.join(faults) or 'there are none'}. "
            f"{PREPARE} makes such a folder from other copies."
        )
    try:
        files = {
            f"{split}/{name}/{file.name}": file.stat()
            for split in SPLITS
            for name in found[split]
            for file in found[split][name]
        }
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); run {PREPARE} on the copy.") from error
    if manifest.exists():
        digests = _read_manifest(manifest, {file: status.st_size for file, status in files.items()})
        fingerprint = hashlib.sha256(manifest.read_bytes()).hexdigest()
        return _Listing(list(files), [digests[file] for file in files], fingerprint, fingerprint)
    strange = [file for file in files if not file.lower().endswith(IMAGES)]
    if strange:
        raise UserError(
            f"{root} holds files that are no images: {some(strange)}. Remove them, or run {PREPARE} on the copy."
        )
    listed = "".join(f"{file} {status.st_size}\n" for file, status in files.items())
    times = "".join(f"{status.st_mtime_ns}\n" for status in files.values())
    return _Listing(list(files), None, listed + times, hashlib.sha256(listed.encode()).hexdigest())


def _class_folders(root: Path, split: str) -> dict[str, list[os.DirEntry]]:
    """{class: its files} of one half, both sorted by name; hidden files are passed over."""

    def entries(folder):
        try:
            with os.scandir(folder) as found:
                kept = (e for e in found if not e.name.startswith(".") and e.name not in LITTER)
                return sorted(kept, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be read ({error.strerror}). data.root={root} should hold train/<wnid>/* and test/<wnid>/* "
                f"of mini-ImageNet; python {PREPARE} COPY {root} makes them from a copy of it."
            ) from error

    classes = {folder.name: entries(folder.path) for folder in entries(root / split)}
    return {name: files for name, files in classes.items() if files}


def _read_manifest(manifest: Path, sizes: dict[str, int]) -> dict[str, str]:
    """{file: sha256}, for the files that are there and have the sizes that they should."""
    try:
        with open(manifest, newline="", encoding="utf-8") as lines:
            rows = {row["path"]: row for row in csv.DictReader(lines)}
        listed = {file: int(row["size"]) for file, row in rows.items()}
        digests = {file: row["sha256"] for file, row in rows.items()}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{manifest} is damaged ({type(error).__name__}: {error}); run {PREPARE} again.") from error
    faults = [f"{file}: missing" for file in sorted(listed.keys() - sizes.keys())]
    faults += [f"{file}: not in the manifest" for file in sorted(sizes.keys() - listed.keys())]
    faults += [
        f"{file}: {sizes[file]} bytes instead of {size}"
        for file, size in listed.items()
        if sizes.get(file, size) != size
    ]
    if faults:
        shown = "\n  ".join(faults[:20] + [f"and {len(faults) - 20} more"] * (len(faults) > 20))
        raise UserError(
            f"{manifest.parent} is not what its manifest.csv says; restore the files, or run {PREPARE} again:\n  {shown}"
        )
    return digests


def _notes(root: Path, files: list[str]) -> list[str]:
    notes = []
    count = {split: sum(file.startswith(f"{split}/") for file in files) for split in SPLITS}
    classes = len({file.split("/")[1] for file in files})
    whole = {split: 100 * a_class for split, a_class in SPLITS.items()}
    if count != whole or classes != 100:
        notes.append(
            f"a part of mini-ImageNet: {classes} classes, {count['train']:,} + {count['test']:,} images, where the whole has 100 "
            f"classes, {whole['train']:,} + {whole['test']:,} images; accuracies are not those of mini-ImageNet"
        )
    first_of_each = {file.split("/")[1]: file for file in reversed(files)}
    sizes = []
    for file in first_of_each.values():
        try:
            with Image.open(root / file) as image:
                sizes.append(image.size)
        except Exception:  # decoding names unreadable files
            continue
    shorts = sorted(min(size) for size in sizes)
    if shorts and shorts[len(shorts) // 2] < 224:
        width, height = sorted(sizes, key=min)[len(sizes) // 2]
        notes.append(
            f"a copy in low resolution: images of {width}x{height}, where the paper trains at 224x224; every view is enlarged, "
            "and accuracies compare neither with the paper's nor with those of full-size copies"
        )
    return notes


# ----------------------------------------------------------------------------------------------------------- batches


class Epoch:
    """The raw batches of one epoch, in order: a sequence whose item i is a pure function of (seed, epoch, i).

    plan: tensors with one row for each image of the epoch. Item i is `assemble` of their rows in batch i.
    """

    def __init__(self, plan: tuple[Tensor, ...], batch_size: int, steps: int, assemble):
        self.plan, self.batch_size, self.steps, self.assemble = plan, batch_size, steps, assemble

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int):
        if not 0 <= i < self.steps:
            raise IndexError(i)
        return self.assemble(*(drawn[i * self.batch_size : (i + 1) * self.batch_size] for drawn in self.plan))


class PictureBatches:
    """All epochs of some of the pictures, in batches of `batch_size`.

    With a seed (training) each epoch has a new order, and a last batch of a single image is left out: batch norm over a 1x1
    map needs two values. Without (test) every image comes, in order.

    len(batches)     steps an epoch
    batches.images   images an epoch
    """

    def __init__(self, pictures, index: Tensor, labels: Tensor, batch_size: int, workers: int = 0, seed=None):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least 1")
        self.pictures, self.index, self.labels = pictures, index, labels
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.images = len(index)
        if seed is not None and batch_size > 1 and self.images % batch_size == 1:
            self.images -= 1

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def epoch(self, epoch: int) -> Epoch:
        """The raw batches of epoch `epoch`."""
        order = torch.arange(len(self.index))
        generator = None
        if self.seed is not None:
            order = torch.randperm(len(order), generator=keyed_generator(self.seed, epoch, "order"))
            generator = keyed_generator(self.seed, epoch, "crop")
        index = self.index[order]
        plan = (index, *self.pictures.draw(index, generator), self.labels[order])
        return Epoch(plan, self.batch_size, len(self), self.pictures.assemble)

    def prepare(self, raw, device) -> tuple[Tensor, Tensor]:
        """A raw batch -> (images float32 (B, 3, side, side) normalised, in channels-last memory; labels int64 (B,))."""
        return self.pictures.prepare(raw, torch.device(device))

    def iterate(self, epoch: int, start: int = 0):
        """The raw batches of epoch `epoch` from step `start`, assembled here or in `workers` processes: the same bytes."""
        return iterate(self.epoch(epoch), start, self.workers)


def _normalisation(side: int, device) -> tuple[Tensor, Tensor]:
    """scale, shift float32 (side, side, 3) with bytes * scale + shift = (bytes / 255 - mean) / std."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    return tuple(part.float().expand(side, side, 3).contiguous().to(device) for part in (1 / (255 * std), -mean / std))


class CachedPictures:
    """Pictures from the cache, cut out and resized on the device that trains.

    A raw batch is only what is to be shown: index (B,), views (B, 8), mirror (B,) and labels (B,). A GPU holds a copy of all
    pixels if they fill at most half of its free memory; otherwise it is sent the regions of each batch.
    """

    def __init__(self, cache: ImageCache, side: int):
        self.cache, self.side = cache, side
        self.sizes = torch.from_numpy(np.ascontiguousarray(cache.sizes))
        self.starts = torch.from_numpy(cache.starts)
        self._normalisation, self._pixels, self._crew = {}, {}, None

    def draw(self, index: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Views (N, 8) and mirror (N,) bool of an epoch; with no generator those of the test."""
        sizes = self.sizes[index]
        if generator is None:
            return central_views(sizes, self.side, _short_side(self.side)), torch.zeros(len(index), dtype=torch.bool)
        return random_views(sizes, self.side, generator), torch.rand(len(index), generator=generator) < 0.5

    @staticmethod
    def assemble(*raw):
        return raw

    def prepare(self, raw, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._normalisation:
            self._normalisation[device] = _normalisation(self.side, device)
        return (self._on_cpu if device.type == "cpu" else self._on_gpu)(*raw, device)

    def _on_cpu(self, index, views, mirror, labels, device):
        """One image after the other, so that it stays in the processor's cache; as many at a time as torch has threads.

        An image is normalised in strips of fewer than 32,768 values: from there on torch would share a strip among its own
        threads, on top of these.
        """
        side = self.side
        scale, shift = (part[0].view(-1) for part in self._normalisation[device])  # of one row, (side x 3,)
        batch = torch.empty(len(index), side, 3 * side)
        strip = max(1, 32_767 // (3 * side))
        jobs = list(zip(batch, index.tolist(), views.tolist(), mirror.tolist(), strict=True))

        def fill(jobs):
            for out, i, view, flip in jobs:
                image = show(self.cache.image(i), view, side).permute(1, 2, 0)
                for top in range(0, side, strip):
                    rows = slice(top, top + strip)
                    part = image[rows].flip(1) if flip else image[rows]
                    out[rows].copy_(part.reshape(-1, 3 * side)).mul_(scale).add_(shift)

        threads = torch.get_num_threads()
        if threads == 1:
            fill(jobs)
        else:
            self._crew = self._crew or concurrent.futures.ThreadPoolExecutor(threads)
            list(self._crew.map(fill, [jobs[k::threads] for k in range(threads)]))
        return batch.view(-1, side, side, 3).permute(0, 3, 1, 2), labels

    def _on_gpu(self, index, views, mirror, labels, device):
        starts, widths = self.starts[index], self.sizes[index, 1]
        pixels = self._resident_pixels(device)
        if pixels is None:
            pixels, starts, widths, views = pack_regions(self.cache, index, views)
            pixels = pixels.to(device, non_blocking=True)
        block = [-(-int(size) // 16) * 16 for size in views[:, 2:4].amax(0)]  # multiples of 16 suit matrix products
        table = torch.cat([starts[:, None], widths[:, None], views, mirror[:, None], labels[:, None]], 1)
        table = table.to(device, non_blocking=True)  # one small transfer
        starts, widths, views, mirror, labels = (
            table[:, 0],
            table[:, 1],
            table[:, 2:10],
            table[:, 10].bool(),
            table[:, 11],
        )
        images = show_batch(pixels, starts, widths, views, mirror, self.side, block, torch.float16)
        return normalise(images.contiguous(), *self._normalisation[device]), labels

    def _resident_pixels(self, device):
        if device not in self._pixels:
            pixels = torch.from_numpy(self.cache.pixels)
            fits = pixels.nbytes <= torch.cuda.mem_get_info(device)[0] / 2
            self._pixels[device] = pixels.to(device) if fits else None
        return self._pixels[device]


def pack_regions(cache: ImageCache, index: Tensor, views: Tensor):
    """Only the regions of a batch: pixels uint8 (P, 3) with starts (B,), widths (B,) and views (B, 8) that refer to them."""
    regions = [
        cache.image(i)[top : top + h, left : left + w].reshape(-1, 3)
        for i, (top, left, h, w) in zip(index.tolist(), views[:, :4].tolist(), strict=True)
    ]
    lengths = views[:, 2] * views[:, 3]
    moved = views.clone()
    moved[:, :2] = 0
    return torch.from_numpy(np.concatenate(regions)), lengths.cumsum(0) - lengths, views[:, 3], moved


class FilePictures:
    """Pictures decoded from their files in every epoch, by loader processes: torchvision's transforms as they are.

    A raw batch is (images uint8 (B, side, side, 3), labels (B,)).
    """

    def __init__(self, paths, side: int):
        self.paths, self.side = paths, side
        self._normalisation = {}

    def draw(self, index: Tensor, generator) -> tuple[Tensor]:
        """A seed for each image of an epoch, (N,); -1 where nothing is random, as in the test."""
        if generator is None:
            return (torch.full_like(index, -1),)
        return (torch.randint(2**62, (len(index),), generator=generator),)

    def assemble(self, index: Tensor, seeds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        train = v2.Compose([v2.RandomResizedCrop(self.side, antialias=True), v2.RandomHorizontalFlip()])
        test = v2.Compose([v2.Resize(_short_side(self.side), antialias=True), v2.CenterCrop(self.side)])
        batch = np.empty((len(index), self.side, self.side, 3), np.uint8)
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the global generator
            for out, i, seed in zip(batch, index.tolist(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(max(seed, 0))
                out[:] = (test if seed < 0 else train)(self._read(i))
        return torch.from_numpy(batch), labels

    def _read(self, i: int) -> Image.Image:
        try:
            with Image.open(self.paths[i]) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow raises many kinds
            raise UserError(
                f"{self.paths[i]} cannot be decoded ({type(error).__name__}: {error}); replace it, or run {PREPARE} on the copy."
            ) from error

    def prepare(self, raw, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._normalisation:
            self._normalisation[device] = _normalisation(self.side, device)
        images, labels = (part.to(device, non_blocking=True) for part in raw)
        return normalise(images, *self._normalisation[device]), labels
