"""Squeeze-and-excitation.

J. Hu, L. Shen, G. Sun, "Squeeze-and-Excitation Networks", CVPR 2018,
https://arxiv.org/abs/1709.01507.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lcm.attention.layers import full_precision, hidden_width, spatial_mean, type_of


class SqueezeExcite(nn.Module):
    """Eqs. (2)-(4): x sigmoid(W2 ReLU(W1 z)), z the mean of each channel; both layers are linear
    with a bias.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the hidden width is C // r, never rounded. ValueError if r is larger than C.
    """

    def __init__(self, channels, reduction):
        super().__init__()
        hidden = hidden_width(channels, reduction)
        self.w1 = nn.Linear(channels, hidden)
        self.w2 = nn.Linear(hidden, channels)

    def forward(self, x):
        with full_precision(x):
            z = spatial_mean(x, type_of(self.w1))  # Eq. (2), (N, C)
            s = torch.sigmoid(self.w2(F.relu(self.w1(z))))  # Eq. (3)
            return x * s.to(x.dtype)[:, :, None, None]  # Eq. (4)
