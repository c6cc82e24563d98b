"""What the channel attentions share: a map pooled to one number a channel, and 1x1 convolutions of such vectors."""

import torch
import torch.nn.functional as F
from torch import nn


def hidden_width(channels, reduction):
    """C // r, the width between the two layers of a channel attention. ValueError where it would be less than one."""
    if reduction < 1:
        raise ValueError(f"reduction {reduction} is below 1, the smallest that divides a width")
    if reduction > channels:
        raise ValueError(
            f"reduction {reduction} is larger than the {channels} channels it divides: choose at most {channels}"
        )
    return channels // reduction


def spatial_mean(x, dtype):
    """Global average pooling (N, C, H, W) -> (N, C), in `dtype`, which is the type of the layers that follow."""
    _, _, h, w = x.shape
    # A sum, because its gradient is a broadcast view; that of `mean` writes a whole map. Sums of float16 may overflow.
    return x.sum((2, 3), dtype=torch.float32 if x.dtype == torch.float16 else None).to(dtype) / (h * w)


class VectorConv(nn.Conv2d):
    """A 1x1 convolution of a 1x1 map that is held as a vector, (N, C) -> (N, C'): one small matrix product.

    Its weight (C', C, 1, 1), its initialisation and its arithmetic are those of `nn.Conv2d`.
    """

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x):
        return F.linear(x, self.weight.flatten(1), self.bias)
