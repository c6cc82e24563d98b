"""Coordinate attention.

Q. Hou, D. Zhou, J. Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
https://arxiv.org/abs/2103.02907.
"""

import torch
import torch.nn.functional as F
from torch import nn


class CoordinateAttention(nn.Module):
    """x g_h g_w, Eq. (9): one weight for each channel and row, one for each channel and column.

    Rows and columns are means over the other direction, Eqs. (4), (5); both go through the same 1x1
    convolution, batch norm and hard swish, Eq. (6), and then each through a 1x1 convolution and a
    sigmoid of its own, Eqs. (7), (8). Convolutions have biases.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the hidden width is C // r, but at least 8, as in the authors' code.
    """

    def __init__(self, channels, reduction=32):
        super().__init__()
        hidden = max(8, channels // reduction)
        self.conv = nn.Conv2d(channels, hidden, kernel_size=1)
        self.bn = nn.BatchNorm2d(hidden)
        self.rows = nn.Conv2d(hidden, channels, kernel_size=1)
        self.columns = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x):
        h, w = x.shape[2:]
        pooled = torch.cat((x.mean(3), x.mean(2)), 2)[..., None]  # Eqs. (4), (5), (N, C, H + W, 1)
        f = F.hardswish(self.bn(self.conv(pooled)))  # Eq. (6), (N, C/r, H + W, 1)
        rows, columns = f.split((h, w), 2)
        g_h = torch.sigmoid(self.rows(rows))  # Eq. (7), (N, C, H, 1)
        g_w = torch.sigmoid(self.columns(columns)).transpose(2, 3)  # Eq. (8), (N, C, 1, W)
        return x * g_h.to(x.dtype) * g_w.to(x.dtype)  # Eq. (9)
