"""A simple attention module without parameters.

L. Yang, R.-Y. Zhang, L. Li, X. Xie, "SimAM: A Simple, Parameter-Free Attention Module for
Convolutional Neural Networks", ICML 2021, https://proceedings.mlr.press/v139/yang21o.html.
"""

import torch
from torch import nn


class SimAM(nn.Module):
    """x sigmoid(1 / e), Eq. (6), with the least energy e of each value of a channel, Eq. (5).

    1 / e = (x - mean)^2 / (4 (variance + lambda)) + 1/2, mean and variance over the positions of
    the channel; the variance is divided by H W - 1, as in the paper's code (Figure 3).

    Args:
        channels: C of the map (N, C, H, W); nothing depends on it; the result has the same shape.
        regularisation: lambda.
    """

    def __init__(self, channels, regularisation=1e-4):
        super().__init__()
        self.regularisation = regularisation

    def forward(self, x):
        # Squares overflow in float16 from 256 on.
        maps = x.to(torch.promote_types(x.dtype, torch.float32))
        square = (maps - maps.mean((2, 3), keepdim=True)).square()  # (N, C, H, W)
        # (N, C, 1, 1); of a 1x1 map 0 / 1, not 0 / 0
        variance = square.sum((2, 3), keepdim=True) / max(1, x.shape[2] * x.shape[3] - 1)
        importance = square / (4 * (variance + self.regularisation)) + 0.5
        return x * torch.sigmoid(importance).to(x.dtype)
