"""Batches of mini-ImageNet, from a cache of decoded images or from the files, on a CPU or a GPU."""

import collections
import concurrent.futures

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lcm.data.in_memory import (
    Epoch,
    EpochBatches,
    keyed_generator,
    normalisation,
    normalise,
    prepare,
)
from lcm.data.mini_imagenet.cache import ImageCache
from lcm.data.mini_imagenet.crops import central_views, random_views, show, show_batch
from lcm.data.mini_imagenet.folder import PREPARE
from lcm.errors import UserError

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as torchvision's networks expect


def short_side_of(image_size: int) -> int:
    """The short side that test images are resized to: 256 for 224."""
    return round(image_size / 0.875)


class ImageBatches(EpochBatches):
    """Batches of some images, `index` with `labels`, from a source: CachedImages or FileImages."""

    def __init__(
        self, source, index: Tensor, labels: Tensor, batch_size: int, workers: int = 0, seed=None
    ):
        super().__init__(len(index), batch_size, workers, seed)
        self.source, self.index, self.labels = source, index, labels

    def epoch(self, epoch: int) -> Epoch:
        """The raw batches of epoch `epoch`."""
        order = torch.arange(len(self.index))
        generator = None
        if self.seed is not None:
            order = torch.randperm(len(order), generator=keyed_generator(self.seed, epoch, "order"))
            generator = keyed_generator(self.seed, epoch, "crop")
        index = self.index[order]
        plan = (index, *self.source.draw(index, generator), self.labels[order])
        return Epoch(plan, self.batch_size, len(self), self.source.assemble)

    def prepare(self, raw, device) -> tuple[Tensor, Tensor]:
        """A raw batch -> (images float32 (B, 3, side, side) normalised, in channels-last memory; labels int64 (B,))."""
        return self.source.prepare(raw, torch.device(device))

    def iterate(self, epoch: int, start: int = 0):
        return self.source.ahead(super().iterate(epoch, start))


class CachedImages:
    """Images from the cache, cropped and resized on the device that trains.

    A raw batch says only what is shown: index (B,), views (B, 8), mirror (B,) and labels (B,). A GPU holds a copy of all pixels
    if they take at most `share` of its free memory (the rest is for training, and for a run that starts at the same time);
    otherwise the regions of each batch are sent to it, packed and pinned by a thread two batches ahead.
    """

    def __init__(self, cache: ImageCache, side: int, share: float = 0.5):
        self.cache, self.side, self.share = cache, side, share
        self.sizes = torch.from_numpy(np.ascontiguousarray(cache.sizes))
        self.starts = torch.from_numpy(cache.starts)
        self._pixels, self._pool = {}, None

    def draw(self, index: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Views (N, 8) and mirror (N,) bool of an epoch; with no generator those of the test."""
        sizes = self.sizes[index]
        if generator is None:
            return central_views(sizes, self.side, short_side_of(self.side)), torch.zeros(
                len(index), dtype=torch.bool
            )
        return random_views(sizes, self.side, generator), torch.rand(
            len(index), generator=generator
        ) < 0.5

    @staticmethod
    def assemble(*raw):
        return raw

    def prepare(self, raw, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._on_cpu(*raw) if device.type == "cpu" else self._on_gpu(raw, device)

    def _on_cpu(self, index, views, mirror, labels):
        """One image after the other, so that it stays in the processor's cache, in as many threads as torch has.

        An image is normalised in strips of fewer than 32,768 values: larger ones torch would divide among its own threads, in
        addition to these.
        """
        side = self.side
        scale, shift = (
            part[0].view(-1) for part in normalisation(MEAN, STD, (side, side, 3))
        )  # of one row
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
            self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(threads)
            list(self._pool.map(fill, [jobs[k::threads] for k in range(threads)]))
        return batch.view(-1, side, side, 3).permute(0, 3, 1, 2), labels

    def ahead(self, raws):
        """The same raw batches; where the regions of each batch are sent to a GPU, packed two batches ahead."""
        return two_ahead(raws, self._pack) if None in self._pixels.values() else raws

    def _pack(self, raw):
        """A raw batch -> a packed one: the pixels of its regions, pinned, and the raw batch that refers to them."""
        index, views, mirror, labels = raw
        pixels, starts, widths, views = pack_regions(self.cache, index, views)
        return (
            pixels.pin_memory() if torch.cuda.is_available() else pixels,
            starts,
            widths,
            views,
            mirror,
            labels,
        )

    def _on_gpu(self, raw, device):
        pixels = self._resident_pixels(device)
        if pixels is None:
            pixels, starts, widths, views, mirror, labels = (
                raw if len(raw) == 6 else self._pack(raw)
            )
            pixels = pixels.to(device, non_blocking=True)
        else:
            index, views, mirror, labels = raw
            starts, widths = self.starts[index], self.sizes[index, 1]
        block = [
            -(-int(size) // 16) * 16 for size in views[:, 2:4].amax(0)
        ]  # multiples of 16 suit matrix products
        table = torch.cat(
            [starts[:, None], widths[:, None], views, mirror[:, None], labels[:, None]], 1
        )
        table = table.to(device, non_blocking=True)  # one small transfer
        starts, widths, mirror, labels = (table[:, column] for column in (0, 1, 10, 11))
        images = show_batch(
            pixels, starts, widths, table[:, 2:10], mirror.bool(), self.side, block, torch.float16
        )
        return normalise(
            images.contiguous(), *normalisation(MEAN, STD, images.shape[1:], images.device)
        ), labels

    def _resident_pixels(self, device):
        """All pixels on the GPU, or None where they do not fit."""
        if device not in self._pixels:
            pixels = torch.from_numpy(self.cache.pixels)
            torch.cuda.empty_cache()  # what the allocator keeps for reuse is free
            try:
                fits = pixels.nbytes <= torch.cuda.mem_get_info(device)[0] * self.share
                self._pixels[device] = pixels.to(device) if fits else None
            except (
                RuntimeError
            ) as error:  # another process took the memory in between; torch has several such errors
                if (
                    not isinstance(error, torch.cuda.OutOfMemoryError)
                    and "out of memory" not in str(error).lower()
                ):
                    raise
                self._pixels[device] = None
        return self._pixels[device]


def pack_regions(cache: ImageCache, index: Tensor, views: Tensor):
    """Only the regions of a batch: pixels uint8 (P, 3), and starts (B,), widths (B,), views (B, 8) in them."""
    regions = [
        cache.image(i)[top : top + h, left : left + w].reshape(-1, 3)
        for i, (top, left, h, w) in zip(index.tolist(), views[:, :4].tolist(), strict=True)
    ]
    lengths = views[:, 2] * views[:, 3]
    moved = views.clone()
    moved[:, :2] = 0
    return (
        torch.from_numpy(np.concatenate(regions)),
        lengths.cumsum(0) - lengths,
        views[:, 3],
        moved,
    )


def two_ahead(items, work):
    """work(item) of each item, in order, computed by a thread up to two items ahead."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        running = collections.deque()
        for item in items:
            running.append(thread.submit(work, item))
            if len(running) > 2:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


class FileImages:
    """Images decoded from their files in every epoch, by loader processes: torchvision's transforms as they are.

    A raw batch is (images uint8 (B, side, side, 3), labels (B,)).
    """

    def __init__(self, paths, side: int):
        self.paths, self.side = paths, side

    def draw(self, index: Tensor, generator) -> tuple[Tensor]:
        """A seed for each image of an epoch, (N,); -1 where nothing is random, as in the test."""
        if generator is None:
            return (torch.full_like(index, -1),)
        return (torch.randint(2**62, (len(index),), generator=generator),)

    def assemble(self, index: Tensor, seeds: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from torchvision.transforms import v2

        train = v2.Compose(
            [v2.RandomResizedCrop(self.side, antialias=True), v2.RandomHorizontalFlip()]
        )
        test = v2.Compose(
            [v2.Resize(short_side_of(self.side), antialias=True), v2.CenterCrop(self.side)]
        )
        batch = np.empty((len(index), self.side, self.side, 3), np.uint8)
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the global generator
            for out, i, seed in zip(batch, index.tolist(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(max(seed, 0))
                out[:] = (test if seed < 0 else train)(self._read(i))
        return torch.from_numpy(batch), labels

    def ahead(self, raws):
        return raws

    def _read(self, i: int) -> Image.Image:
        try:
            with Image.open(self.paths[i]) as image:
                return image.convert("RGB")
        except Exception as error:  # Pillow raises many kinds
            raise UserError(
                f"{self.paths[i]} cannot be decoded ({type(error).__name__}: {error}); replace it, or run {PREPARE} on the copy."
            ) from error

    def prepare(self, raw, device: torch.device) -> tuple[Tensor, Tensor]:
        return prepare(raw, MEAN, STD, device)
