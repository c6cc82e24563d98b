"""Data sets held in memory as bytes, and their batches, each assembled as a whole.

Augmentation as in the CIFAR experiments of He et al., "Deep Residual Learning for Image
Recognition" (2016), section 4.2: zero-pad by 4 pixels, take a random 32x32 crop, mirror it with
probability 0.5, then normalise each channel.

All random numbers of an epoch depend on (seed, epoch) alone: not on earlier epochs, the number of
worker processes, the device, or the step at which a run was continued.
"""

import functools
import hashlib

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from lcm.data.workers import in_workers


def keyed_generator(seed, epoch, what) -> torch.Generator:
    """A CPU generator for one thing that an epoch draws; similar keys give unrelated streams.

    Epochs are counted from 1, in the key from 0, as in the first recorded runs.
    """
    digest = hashlib.sha256(repr((seed, epoch - 1, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def normalise(images: Tensor, mean: tuple, std: tuple) -> Tensor:
    """uint8 (B, H, W, C) -> (images / 255 - mean) / std, float32 (B, C, H, W).

    In channels-last memory. mean, std: of each channel, of pixels in [0, 1].
    """
    scale, shift = scale_and_shift(mean, std, images.shape[1:], images.device)
    # In place: the float tensor is new. The permutation moves no byte: NHWC is what NCHW looks
    # like in channels-last memory.
    return images.to(torch.float32).mul_(scale).add_(shift).permute(0, 3, 1, 2)


@functools.cache
def scale_and_shift(mean: tuple, std: tuple, shape: tuple, device) -> tuple[Tensor, Tensor]:
    """scale, shift float32 (H, W, C) with images * scale + shift = (images / 255 - mean) / std.

    Expanded to a whole image: the CPU multiplies rows of H * W * C values instead of rows of C.
    """
    mean, std = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, std))
    # Divided in float64 and rounded once; a multiplication and an addition are left.
    return tuple(
        part.float().expand(shape).contiguous().to(device)
        for part in (1 / (255 * std), -mean / std)
    )


class Resident:
    """Images in memory, with their augmentation.

    images      uint8 (N, H, W, C), as decoded: neither padded nor normalised
    labels      int64 (N,)
    mean, std   of each channel, of training pixels in [0, 1]
    pad         zero pixels on each side before a window of H x W is cut; 0: no crop
    mirror      flip each image horizontally with probability 0.5
    seed        of all random numbers; None: the stored order, no augmentation (test sets)

    The CPU assembles batches with `gather`; a GPU keeps the images and calls `crop`: equal bytes.
    """

    def __init__(self, images, labels, mean, std, *, pad=0, mirror=False, seed=None):
        self.images = torch.as_tensor(images)
        self.labels = torch.as_tensor(labels)
        self.mean, self.std = tuple(mean), tuple(std)
        self.pad, self.mirror, self.seed = pad, mirror, seed

    def __len__(self) -> int:
        return len(self.images)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """What an epoch, counted from 1, shows, on the CPU.

        Returns order (N,) int64, offsets (N, 2) int64 in 0..2 pad, mirror (N,) bool.

        Position i of the epoch shows image order[i]: the window whose top left corner is
        offsets[i] = (row, column) of the padded image, mirrored where mirror[i].
        """
        n = len(self)
        order = torch.arange(n)
        offsets = torch.zeros(n, 2, dtype=torch.int64)
        mirror = torch.zeros(n, dtype=torch.bool)
        if self.seed is None:
            return order, offsets, mirror
        # A generator for each: a set without crops or mirroring has the same order.
        order = torch.randperm(n, generator=keyed_generator(self.seed, epoch, "order"))
        if self.pad:
            crop = keyed_generator(self.seed, epoch, "crop")
            offsets = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=crop)
        if self.mirror:
            flip = keyed_generator(self.seed, epoch, "mirror")
            mirror = torch.randint(0, 2, (n,), generator=flip).bool()
        return order, offsets, mirror

    def crop(self, images: Tensor, index: Tensor, offsets: Tensor, mirror: Tensor) -> Tensor:
        """Windows of images[index], uint8 (B, H, W, C), by indexing alone.

        Nothing waits, so a CUDA graph can hold it. images (N, H, W, C); index (B,), offsets (B, 2),
        mirror (B,): a slice of `plan`; all on one device.
        """
        _, height, width, _ = images.shape
        down = torch.arange(height, device=images.device) - self.pad
        right = torch.arange(width, device=images.device) - self.pad
        # A mirrored window reads its columns from right to left, in the same look-up.
        rows = offsets[:, 0, None] + down  # (B, H)
        columns = offsets[:, 1, None] + torch.where(mirror[:, None], right.flip(0), right)  # (B, W)
        # Padding without a padded copy: outside, the nearest pixel is read, then set to 0.
        near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        inside = (rows == near_rows)[:, :, None] & (columns == near_columns)[:, None, :]
        # The three indices broadcast to (B, H, W), the channels follow: (B, H, W, C)
        near = images[index[:, None, None], near_rows[:, :, None], near_columns[:, None, :]]
        return near * inside[..., None]

    def gather(self, index: Tensor, offsets: Tensor, mirror: Tensor) -> Tensor:
        """As `crop`, on the CPU, many times faster there: it copies windows, not single pixels."""
        images = self.images.numpy()
        n, (height, width, channels), pad = len(index), images.shape[1:], self.pad
        pixels = images.view(f"V{channels}")[..., 0]  # (N, H, W): a pixel as one element
        padded = np.zeros((n, height + 2 * pad, width + 2 * pad), pixels.dtype)
        padded[:, pad : pad + height, pad : pad + width] = pixels[index.numpy()]
        # All windows of all images, a view: the line below it copies one of each.
        # (B, 2 pad + 1, 2 pad + 1, H, W)
        windows = sliding_window_view(padded, (height, width), axis=(1, 2))
        batch = windows[np.arange(n), offsets[:, 0].numpy(), offsets[:, 1].numpy()]  # (B, H, W)
        flip = mirror.numpy()
        # An element is a whole pixel: its channels keep their order.
        batch[flip] = batch[flip][:, :, ::-1]
        return torch.from_numpy(batch.view(np.uint8).reshape(n, height, width, channels))

    def assemble(self, index: Tensor, offsets: Tensor, mirror: Tensor) -> tuple[Tensor, Tensor]:
        """A raw batch on the CPU: images uint8 (B, H, W, C) and labels int64 (B,)."""
        return self.gather(index, offsets, mirror), self.labels[index]


class Batches:
    """All epochs of a source's images, in batches.

    source   has len(), `seed`, `mean` and `std` of the pixels in [0, 1], `plan(epoch)`, tensors
             with one row for each image of the epoch, and `assemble(*rows of the plan)`, as
             `Resident` does
    workers  processes that assemble batches; 0: none but this one. The bytes are the same.

    With a seed (training) the images are shuffled each epoch and a last batch of a single image is
    left out: batch norm of a 1x1 map needs two values. Without a seed (test) all images come in the
    stored order.

    len(batches)      steps an epoch
    batches.images    images an epoch
    batches.resident  the source, where a GPU can assemble its own batches from that; None otherwise
    """

    def __init__(self, source, batch_size: int, workers: int = 0):
        self.source, self.batch_size, self.workers = source, batch_size, workers
        self.resident = source if isinstance(source, Resident) else None
        alone = source.seed is not None and len(source) % batch_size == 1
        self.images = len(source) - alone

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def iterate(self, epoch: int, start: int = 0):
        """The raw batches of epoch `epoch` from step `start`, each as `batch` returns it.

        The global random state does not change.
        """
        # The whole epoch is drawn, also for a start in its middle: step k is the same one
        # either way. Forked workers inherit the plan, and are sent the numbers of steps alone.
        batch = functools.partial(self.batch, self.source.plan(epoch))
        steps = range(start, len(self))
        return in_workers(batch, steps, self.workers) if self.workers else map(batch, steps)

    def batch(self, plan: tuple[Tensor, ...], step: int) -> tuple[Tensor, Tensor]:
        """The raw batch of a step of a plan: images uint8 (B, H, W, C), labels int64 (B,)."""
        rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.source.assemble(*(drawn[rows] for drawn in plan))

    def prepare(self, raw: tuple[Tensor, Tensor], device) -> tuple[Tensor, Tensor]:
        """A raw batch -> images float32 (B, C, H, W), normalised; labels int64 (B,)."""
        # Bytes travel, a quarter of what floats would be; the device makes floats of them.
        images, labels = (part.to(device, non_blocking=True) for part in raw)
        return normalise(images, self.source.mean, self.source.std), labels


class ResidentSet:
    """A data set in memory. `name`, `num_classes`, ... are the keys of its config."""

    def __init__(self, name, num_classes, image_size, pad, mirror):
        self.name, self.num_classes, self.image_size = name, num_classes, image_size
        self.pad, self.mirror = pad, mirror

    def hold(self, train, test, classes, mean, std):
        """train, test: (images uint8 (N, H, W, 3), labels int64 (N,)).

        mean, std: of each channel, of training pixels in [0, 1].
        """
        self._train, self._test, self.classes = train, test, classes
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        # Of the images as they are held: in another order the same plan shows other batches.
        digest = hashlib.sha256()
        for array in (*train, *test):
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()

    def train(self, batch_size: int, seed: int) -> Batches:
        """The training images, shuffled and augmented by (seed, epoch)."""
        resident = Resident(
            *self._train, self.mean, self.std, pad=self.pad, mirror=self.mirror, seed=seed
        )
        return Batches(resident, batch_size)

    def test(self, batch_size: int) -> Batches:
        """The test images in their stored order, not augmented."""
        return Batches(Resident(*self._test, self.mean, self.std), batch_size)
