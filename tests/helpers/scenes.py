"""Pictures in which a shifted or differently filtered copy differs, and what torchvision shows of them."""

import numpy as np
from PIL import Image
from torchvision.transforms import v2

SIZES = [(84, 90), (500, 375), (300, 420), (256, 256), (640, 120), (257, 258)]  # width, height


def scene(seed, width, height):
    """A picture with edges and noise, so that a shifted or differently filtered copy differs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    noise = rng.integers(0, 60, (height, width, 3), np.uint8)
    return Image.fromarray(np.minimum(np.asarray(coarse), 195) + noise)


def by_torchvision(image, view, mirror, side=224):
    """What torchvision shows of a Pillow image in a training view, uint8 (side, side, 3)."""
    top, left, height, width = view[:4]
    shown = np.asarray(
        v2.functional.resized_crop(image, top, left, height, width, [side, side], antialias=True)
    )
    return shown[:, ::-1] if mirror else shown
