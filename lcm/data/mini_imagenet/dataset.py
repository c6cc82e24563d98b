"""mini-ImageNet at 224 pixels.

Augmentation as in the ImageNet experiments of He et al., "Deep Residual Learning for Image Recognition" (2016), and in
torchvision's reference training: a random region of a training image is resized to 224x224 and mirrored with probability 0.5;
the short side of a test image is resized to 256 and the central 224x224 pixels are taken.
docs/data.md says what the cache of images changes.
"""

import hashlib
from pathlib import Path

import torch

from lcm.data.mini_imagenet.batches import (
    MEAN,
    STD,
    CachedImages,
    FileImages,
    ImageBatches,
    short_side_of,
)
from lcm.data.mini_imagenet.cache import VERSION, open_cache
from lcm.data.mini_imagenet.folder import PREPARE, list_images, notes_on
from lcm.errors import UserError


class MiniImageNet:
    """The images of `root`/train/<class>/* and `root`/test/<class>/*; classes are numbered in sorted order.

    Any such folder is accepted, also one with fewer classes (`notes` says so). Where there is a manifest.csv, written by
    scripts/prepare_mini_imagenet.py, names and sizes are checked against it and its hash is the fingerprint; otherwise the
    fingerprint is a hash of names and sizes.

    cache       decode all images once into `cache_dir` (None: `root`/cache) and read them from there; False: read the files
    cache_size  short side of the cached images; None: images as they are
    workers     loader processes where cache is False
    notes       what a reader of the results must know: that the copy has small images, or is not complete

    Raises `UserError`: no such folder, different classes in train and test, images that cannot be read or differ from the
    manifest.
    """

    mean, std = MEAN, STD  # of the pixels in [0, 1]

    def __init__(self, name, num_classes, image_size, root, workers, cache, cache_dir, cache_size):
        if cache and cache_size is not None and cache_size < short_side_of(image_size):
            raise UserError(
                f"data.cache_size={cache_size}: test images of {image_size} pixels are cut from a short side of "
                f"{short_side_of(image_size)}; set at least that, or null to store the images as they are."
            )
        root = Path(root).expanduser()
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        files, digests, stamp, self.fingerprint = list_images(root)
        self.classes = sorted({file.split("/")[1] for file in files})
        if len(self.classes) > num_classes:
            raise UserError(
                f"{root} holds {len(self.classes)} classes, and data.num_classes is {num_classes}: this is another data set. "
                f"{PREPARE} makes mini-ImageNet from the usual copies of it."
            )
        self.notes = notes_on(root, files)
        paths = [f"{root}/{file}" for file in files]
        if cache:
            key = hashlib.sha256(f"{VERSION} {cache_size} {stamp}".encode()).hexdigest()[:16]
            self._images = CachedImages(
                open_cache(paths, key, cache_dir or root / "cache", cache_size, digests), image_size
            )
        else:
            self._images = FileImages(paths, image_size)
        self._workers = (
            0 if cache else workers
        )  # of cached images a loader would assemble only a few numbers each
        label = {name: number for number, name in enumerate(self.classes)}
        labels = torch.tensor([label[file.split("/")[1]] for file in files])
        train = sum(file.startswith("train/") for file in files)  # these come first
        index = torch.arange(len(files))
        self._train, self._test = (index[:train], labels[:train]), (index[train:], labels[train:])

    def train(self, batch_size: int, seed: int) -> "ImageBatches":
        """The training images, shuffled and augmented by (seed, epoch)."""
        return ImageBatches(self._images, *self._train, batch_size, self._workers, seed)

    def test(self, batch_size: int) -> "ImageBatches":
        """The test images, sorted by class and name, not augmented."""
        return ImageBatches(self._images, *self._test, batch_size, self._workers)
