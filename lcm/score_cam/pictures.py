"""Pictures to explain: one's own, of any size, or images of a test set. All are normalised."""

import numpy as np
import torch

from lcm.data.folder import read_squares
from lcm.errors import UserError


def read_pictures(files, size, mean, std):
    """Pictures of one's own as a network's input: (N, 3, size, size), float32, normalised.

    The largest centred square of each, brought to `size` pixels, upright where a camera has noted
    how it was held. mean, std: a channel, of the training pixels in [0, 1]. Raises UserError with
    every file that is no picture.
    """
    pixels = torch.from_numpy(read_squares(files, size)) / 255  # (N, size, size, 3)
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def from_test_set(batches, indices=()):
    """Images of a test set: (their numbers, (N, 3, H, W), labels (N,)).

    batches: of one image each, `data.test(1)`. indices: four, evenly spread, where none are given.
    Raises UserError for a number that the test set does not have.
    """
    indices = indices or [batches.images * i // 4 for i in range(4)]
    for index in indices:
        if not 0 <= index < batches.images:
            raise UserError(f"--index {index}: the test images are 0 to {batches.images - 1}")
    # A test set's plan never changes; with batches of one image a step is its number.
    plan = batches.source.plan(1)
    raws = (batches.batch(plan, index) for index in indices)
    images, labels = zip(*(batches.prepare(raw, "cpu") for raw in raws), strict=True)
    return indices, torch.cat(images), torch.cat(labels)


def shown(images, mean, std):
    """Normalised images (N, 3, H, W) as pixels in [0, 1], (N, H, W, 3): what the network sees."""
    return (images.permute(0, 2, 3, 1).numpy() * np.array(std) + np.array(mean)).clip(0, 1)
