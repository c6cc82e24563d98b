"""Convolutional block attention module.

S. Woo, J. Park, J.-Y. Lee, I. S. Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
https://arxiv.org/abs/1807.06521.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lcm.attention.layers import full_precision, hidden_width, maximum, spatial_mean, type_of, wide


class CBAM(nn.Module):
    """Channel attention, Eq. (2), then spatial attention, Eq. (3), of average and maximum each.

    No batch norm follows the 7x7 convolution: the CBAM paper has none, its authors' code has one,
    and the counts of the paper reproduced here fit without it.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the shared MLP has a hidden width of C // r. ValueError if r is larger than C.
        bias: biases in the MLP.
    """

    def __init__(self, channels, reduction, bias=True):
        super().__init__()
        hidden = hidden_width(channels, reduction)
        self.w0 = nn.Linear(channels, hidden, bias=bias)
        self.w1 = nn.Linear(hidden, channels, bias=bias)
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x):
        with full_precision(x):
            average = spatial_mean(x, type_of(self.w0))
            # Not AdaptiveMaxPool2d: the same values and gradients, but its backward pass is not
            # deterministic on a GPU. The gradient of `max` has the layout of what it is taken of:
            # channels last, as the maps have it.
            largest = maximum(x.flatten(2).transpose(1, 2), 1).to(average.dtype)
            pooled = torch.stack((average, largest), 1)  # (N, 2, C)
            # The shared MLP takes both as rows; its results are added before the sigmoid.
            m = torch.sigmoid(self.w1(F.relu(self.w0(pooled))).sum(1))  # Eq. (2), (N, C)
            x = x * m.to(x.dtype)[:, :, None, None]
        average = (x.sum(1, dtype=wide(x)) / x.shape[1]).to(x.dtype)  # (N, H, W)
        pooled = torch.stack((average, maximum(x.movedim(1, -1), -1)), 1)  # (N, 2, H, W)
        m = self.spatial(pooled)  # Eq. (3), (N, 1, H, W)
        return x * torch.sigmoid(m).to(x.dtype)
