"""mini-ImageNet at 224 pixels.

Augmentation as in the ImageNet experiments of He et al., "Deep Residual Learning for Image Recognition" (2016), and in
torchvision's reference training: in training a random region is resized to 224x224 and mirrored half of the time; in the test
the short side is resized to 256 and the central 224x224 are cut out.

The cache keeps images at a short side of 256 pixels (smaller ones as they are): test images come out as from the files, but a
region of a 500x375 photograph is cut from 341x256 pixels. With cache_size=null, or without the cache, it is cut from the file's
own pixels.
"""

import hashlib
from pathlib import Path

import torch

from lcm.data.mini_imagenet.batches import MEAN, STD, CachedImages, FileImages, ImageBatches, short_side_of
from lcm.data.mini_imagenet.cache import VERSION, open_cache
from lcm.data.mini_imagenet.folder import PREPARE, list_images, notes_on
from lcm.errors import UserError

__all__ = ["MEAN", "STD", "MiniImageNet"]


class MiniImageNet:
    """The images of `root`/train/<class>/* and `root`/test/<class>/*; a class's index is its place in sorted order.

    Any such folder will do, also one with fewer classes (`notes` says so). Where scripts/prepare_mini_imagenet.py has left a
    manifest.csv, names and sizes are checked against it and its hash is the fingerprint; otherwise that is a hash of names and
    sizes.

    cache       decode all images once into `cache_dir` (None: `root`/cache) and read them from there; False: read the files
    cache_size  short side of the cached images; None: images as they are
    workers     loader processes where cache is False
    notes       what a reader of the results must know: that the copy is small in pixels, or not complete

    Raises UserError: no such folder, classes that differ, images that cannot be read or differ from the manifest.
    """

    mean, std = MEAN, STD  # of the pixels in [0, 1]

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
        if cache and cache_size is not None and cache_size < short_side_of(image_size):
            raise UserError(
                f"data.cache_size={cache_size}: test images of {image_size} pixels are cut from a short side of "
                f"{short_side_of(image_size)}; set at least that, or null to keep the images as they are."
            )
        root = Path(root).expanduser()
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        files, digests, stamp, self.fingerprint = list_images(root)
        self.classes = sorted({file.split("/")[1] for file in files})
        if len(self.classes) > num_classes:
            raise UserError(
                f"{root} holds {len(self.classes)} classes, and data.num_classes is {num_classes}: this is another data set. "
                f"{PREPARE} makes mini-ImageNet from the copies of it that there are."
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
        self._workers = 0 if cache else workers  # what a loader would assemble from a cache is a few numbers an image
        label = {name: i for i, name in enumerate(self.classes)}
        labels = torch.tensor([label[file.split("/")[1]] for file in files])
        in_training = torch.tensor([file.startswith("train/") for file in files])
        self._parts = {"train": in_training.nonzero()[:, 0], "test": (~in_training).nonzero()[:, 0]}
        self._parts = {split: (index, labels[index]) for split, index in self._parts.items()}

    def train(self, batch_size: int, seed: int) -> "ImageBatches":
        """The training images: each epoch in an order, with regions and mirrors, that (seed, epoch) decides."""
        return ImageBatches(self._images, *self._parts["train"], batch_size, self._workers, seed)

    def test(self, batch_size: int) -> "ImageBatches":
        """The test images, sorted by class and name, not augmented."""
        return ImageBatches(self._images, *self._parts["test"], batch_size, self._workers)
