"""What cutting training regions from cached images changes against cutting them from the files.

    python tests/proofs/cache_pixels.py data/mini-imagenet  # 84x84 copies are enlarged to 500x375

For each image one training region is drawn, cut from the image and from its cached version (short
side 256), and both are resized to 224x224. Printed: how many pixels the region's short side has in
either, and the mean absolute difference of the crops, of 255 levels. Enlarged 84x84 copies have no
detail finer than their pixels: full-size photographs differ more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

SIDE = 224
SIZE = (500, 375)  # width and height of a usual photograph of ImageNet
CACHED = (341, 256)  # its size in the cache


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    files = sorted(parser.parse_args().root.glob("train/*/*"))
    torch.manual_seed(0)
    scale = CACHED[1] / SIZE[1]
    short, differences = [], []
    for file in files:
        image = Image.open(file).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        cached = image.resize(CACHED, Image.Resampling.BILINEAR)
        top, left, h, w = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
        box = (left, top, left + w, top + h)
        small = [min(round(v * scale), end) for v, end in zip(box, CACHED * 2, strict=True)]
        crops = [
            np.asarray(source.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=region), float)
            for source, region in ((image, box), (cached, small))
        ]
        short.append(min(h, w))
        differences.append(abs(crops[0] - crops[1]).mean())
    print(f"{len(files)} images of {SIZE[0]}x{SIZE[1]}")
    for name, sides in (("file", np.array(short)), ("cache", np.array(short) * scale)):
        print(f"short side of a region in pixels of the {name}: median {np.median(sides):.0f}")
        print(f"regions that are enlarged: {(sides < SIDE).mean():.0%}")
    print(f"mean absolute difference: {np.mean(differences):.2f} of 255")


if __name__ == "__main__":
    main()
