"""Crops of images of any size, resized: torchvision's RandomResizedCrop, Resize + CenterCrop, a whole batch at a time.

A *view* is one row of eight numbers, int64: the region (top, left, height, width) of an image, the size (height, width) that
it is resized to, and the first (row, column) of the square window that is kept of the result. Resizing is the antialiased
bilinear filter of Pillow and torchvision: a triangle as wide as max(1, reduction) on each side.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10
SCALE = (0.08, 1.0)  # of the area of an image
RATIO = (3 / 4, 4 / 3)  # width over height


def random_views(sizes: Tensor, side: int, generator) -> Tensor:
    """One random view for each image, (N, 8): its region has torchvision's `RandomResizedCrop.get_params` distribution.

    sizes: int64 (N, 2), height and width of the images. A share of the area uniform in SCALE and an aspect
    log-uniform in RATIO are drawn up to ten times until the region fits, then its position; where none fits, the
    largest central region of an allowed aspect is taken (Szegedy et al., "Going Deeper with Convolutions", 2015).
    """
    drawn = torch.rand(len(sizes), 2 * TRIES + 2, generator=generator, dtype=torch.float64)
    height, width = sizes[:, :1], sizes[:, 1:]  # (N, 1)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * drawn[:, :TRIES])  # (N, tries)
    low, high = map(math.log, RATIO)
    aspect = torch.exp(low + (high - low) * drawn[:, TRIES : 2 * TRIES])
    h, w = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.gather(1, first)  # (N, 1)
    h = torch.where(
        found, h.gather(1, first), torch.minimum(height, (width / RATIO[0]).round().long())
    )
    w = torch.where(
        found, w.gather(1, first), torch.minimum(width, (height * RATIO[1]).round().long())
    )
    slack = torch.cat([height - h, width - w], dim=1)
    corner = torch.where(found, (drawn[:, -2:] * (slack + 1)).long(), slack // 2)  # top, left
    to, window = torch.full_like(sizes, side), torch.zeros_like(sizes)
    return torch.cat([corner, h, w, to, window], dim=1)


def central_views(sizes: Tensor, side: int, short_side: int) -> Tensor:
    """The view of each image that torchvision's Resize(short_side), CenterCrop(side) shows, (N, 8). sizes: int64 (N, 2)."""
    to = torch.tensor(
        [[short_side * a // min(h, w) for a in (h, w)] for h, w in sizes.tolist()]
    ).view(-1, 2)
    window = ((to - side) / 2).round().long()
    return torch.cat([torch.zeros_like(sizes), sizes, to, window], dim=1)


def show(image: np.ndarray, view, side: int) -> Tensor:
    """One view of one image on the CPU: uint8 (H, W, 3) -> uint8 (3, side, side), in channels-last memory.

    PyTorch's resampling of bytes takes about a quarter of Pillow's time and gives the same values but for a few that differ by 1.
    """
    top, left, h, w, to_h, to_w, row, column = view
    region = torch.from_numpy(np.ascontiguousarray(image[top : top + h, left : left + w]))
    region = region[None].permute(
        0, 3, 1, 2
    )  # in this order torch sees channels-last memory, and keeps it
    if (h, w) != (to_h, to_w):
        region = F.interpolate(region, size=(to_h, to_w), mode="bilinear", antialias=True)
    return region[0, :, row : row + side, column : column + side]


def show_batch(
    pixels: Tensor,
    starts: Tensor,
    widths: Tensor,
    views: Tensor,
    mirror: Tensor,
    side: int,
    block,
    dtype=torch.float32,
) -> Tensor:
    """The views of a batch on any device, without synchronising with it: (B, side, side, 3) of `dtype`, 0 to 255.

    pixels: uint8 (P, 3), the pixels of many images; image b begins at starts[b] and has rows of widths[b] pixels.
    block: (height, width) at least as large as any region of the batch, as two numbers of Python.
    Regions are gathered into blocks of one size and resized by two small matrix products an image, whose weights are zero
    outside the region and in reverse order where `mirror`. Intermediate values are not rounded to bytes.
    """
    top, left, h, w, to_h, to_w, row, column = views.unbind(1)
    down, right = (torch.arange(n, device=pixels.device) for n in block)
    down, right = (
        torch.minimum(down, h[:, None] - 1),
        torch.minimum(right, w[:, None] - 1),
    )  # (B, block)
    at = starts[:, None] + (top[:, None] + down) * widths[:, None] + left[:, None]  # (B, rows)
    regions = pixels[at[:, :, None] + right[:, None, :]].to(dtype)  # (B, rows, columns, 3)
    vertical = _triangles(h, to_h, row, torch.zeros_like(mirror), side, block[0]).to(
        dtype
    )  # (B, side, rows)
    horizontal = _triangles(w, to_w, column, mirror, side, block[1]).to(dtype)  # (B, side, columns)
    n = len(views)
    rows = torch.bmm(vertical, regions.view(n, block[0], -1)).view(n, side, block[1], 3)
    columns = rows.transpose(1, 2).reshape(n, block[1], -1)  # (B, columns, side x 3)
    return torch.bmm(horizontal, columns).view(n, side, side, 3).transpose(1, 2)


def _triangles(
    length: Tensor, to: Tensor, window: Tensor, mirror: Tensor, side: int, block: int
) -> Tensor:
    """The weights of `block` pixels in each of the `side` kept pixels: (B, side, block), rows summing to 1."""
    kept = torch.arange(side, device=length.device)
    kept = window[:, None] + torch.where(mirror[:, None], side - 1 - kept, kept)  # (B, side)
    reduction = (length / to)[:, None]
    centre = (kept + 0.5) * reduction
    pixel = torch.arange(block, device=length.device)
    distance = (pixel + 0.5 - centre[..., None]).abs()  # (B, side, block)
    weight = (1 - distance / reduction.clamp(min=1)[..., None]).clamp_(min=0)
    weight *= pixel < length[:, None, None]
    return weight / weight.sum(-1, keepdim=True)
