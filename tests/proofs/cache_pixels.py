"""What cutting training regions from cached images (short side 256) changes against cutting them from the files' own pixels.

    python tests/proofs/cache_pixels.py data/mini-imagenet          # the 84x84 copies are first enlarged to 500x375

For each image one training region is drawn, cut from the image and from its cached version, and both are resized to 224x224.
Printed: how many pixels the region's short side has in either, and the mean absolute difference of the crops, of 255 levels.
Enlarged 84x84 copies have no detail finer than their pixels: full-size photographs differ more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lcm.data.mini_imagenet.cache import cached_size
from lcm.data.mini_imagenet.crops import random_views, show

SIDE, SIZE, CACHED = 224, (375, 500), 256  # height and width of a usual photograph of ImageNet


def pair(image, view):
    """The crop (3, 224, 224) of one region from the image and from its cached version."""
    height, width = image.shape[:2]
    small = cached_size(height, width, CACHED)
    cached = np.asarray(Image.fromarray(image).resize(small[::-1], Image.Resampling.BILINEAR))
    top, left, h, w, *rest = view
    region = [round(value * small[0] / height) for value in (top, left, h, w)]
    region[2], region[3] = (
        min(region[2], small[0] - region[0]),
        min(region[3], small[1] - region[1]),
    )
    return show(image, view, SIDE).float(), show(cached, [*region, *rest], SIDE).float()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    files = sorted(parser.parse_args().root.glob("train/*/*"))
    generator = torch.Generator().manual_seed(0)
    views = random_views(torch.tensor([SIZE] * len(files)), SIDE, generator)
    differences = []
    for file, view in zip(files, views.tolist(), strict=True):
        with Image.open(file) as opened:
            image = np.asarray(opened.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC))
        own, cached = pair(image, view)
        differences.append((own - cached).abs().mean().item())
    short = views[:, 2:4].amin(1).float()
    shares = torch.quantile(short, torch.tensor([0.1, 0.5, 0.9])).tolist()
    print(f"{len(files)} images of {SIZE[1]}x{SIZE[0]}")
    print(
        "short side of a region, pixels of the file (10 %, 50 %, 90 %): "
        + ", ".join(f"{share:.0f}" for share in shares)
    )
    print(
        "the same in pixels of the cache: "
        + ", ".join(f"{share * CACHED / SIZE[0]:.0f}" for share in shares)
    )
    enlarged = [(side < SIDE).float().mean().item() for side in (short, short * CACHED / SIZE[0])]
    print(
        "regions that are enlarged, of the file's and of the cache's pixels: {:.0%}, {:.0%}".format(
            *enlarged
        )
    )
    print(
        f"mean absolute difference: {np.mean(differences):.2f} of 255 (90 % below {np.quantile(differences, 0.9):.2f})"
    )


if __name__ == "__main__":
    main()
