"""Efficient channel attention.

Q. Wang, B. Wu, P. Zhu, P. Li, W. Zuo, Q. Hu, "ECA-Net: Efficient Channel Attention for Deep
Convolutional Neural Networks", CVPR 2020, https://arxiv.org/abs/1910.03151.
"""

import math

import torch
from torch import nn

from lcm.attention.layers import full_precision, spatial_mean


class ECA(nn.Module):
    """x sigmoid(C1D_k(y)), Eq. (9), y the mean of each channel.

    C1D_k is a 1D convolution over k neighbouring channels, without bias.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        gamma, b: k is |log2(C) / gamma + b / gamma|, made odd, Eq. (12).
    """

    def __init__(self, channels, gamma=2, b=1):
        super().__init__()
        # To the nearest odd number: down to a whole one, and up by one if that is even.
        k = int(abs((math.log2(channels) + b) / gamma))
        k += 1 - k % 2
        self.conv = nn.Conv1d(1, 1, kernel_size=k, padding=k // 2, bias=False)

    def forward(self, x):
        with full_precision(x):
            y = spatial_mean(x, self.conv.weight.dtype)  # (N, C)
            s = torch.sigmoid(self.conv(y[:, None])[:, 0])  # (N, 1, C) -> (N, C)
            return x * s.to(x.dtype)[:, :, None, None]
