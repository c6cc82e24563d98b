"""Pictures in which a shifted or differently filtered copy differs."""

import numpy as np
from PIL import Image

SIZES = [(84, 90), (500, 375), (300, 420), (256, 256), (640, 120), (257, 258)]  # width, height


def scene(seed, width, height):
    """A picture with edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    coarse = coarse.resize((width, height), Image.Resampling.NEAREST)
    noise = rng.integers(0, 60, (height, width, 3), np.uint8)
    return Image.fromarray(np.minimum(np.asarray(coarse), 195) + noise)
