"""LC modules 1 and 2: a feature of the whole layer calibrates the attention to its channels.

Z. Lu et al., "Channel-Wise Correlation Calibrates Attention Module for Convolutional Neural
Networks", Journal of Sensors 2022, 2000170, https://doi.org/10.1155/2022/2000170 (retracted in
December 2023).
"""

import torch
import torch.nn.functional as F
from torch import nn

from lcm.attention.layers import VectorConv, full_precision, hidden_width, maximum, spatial_mean


class _LCM(nn.Module):
    """What both modules have: W1 (C -> C/r), batch norm, W2 (C/r -> C), f over [average, maximum].

    The paper calls f a 3x3 convolution with 2x1x1x1 parameters; on a 1x1 map only the centre tap of
    a 3x3 acts, so it is 1x1 here, and so are W1 and W2. All keep PyTorch's initialisation. Batch
    norm sees one value an image: training needs at least two images.
    """

    def __init__(self, channels, reduction, expand_bias=False):
        super().__init__()
        hidden = hidden_width(channels, reduction)
        # Not Kaiming-normal, with which LCM1 hardly trains (REPRODUCTION.md): s is about 1/C,
        # the batch norm divides by a tiny deviation, and what W2 adds has no bound.
        self.w1 = VectorConv(channels, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.w2 = VectorConv(hidden, channels, bias=expand_bias)
        self.f = VectorConv(2, 1, bias=False)

    def layer_feature(self, local):
        """Eq. (2): g = sigmoid(f([average(l), maximum(l)])), (N, C) -> (N, 1)."""
        # Pooled over the channels, not over positions: (N, 2).
        return torch.sigmoid(self.f(torch.stack((local.mean(1), maximum(local, 1)), 1)))

    def bottleneck(self, s):
        """Eqs. (5) and (7): W2 ReLU(BN(W1 s)), (N, C) -> (N, C)."""
        return self.w2(F.relu(self.bn(self.w1(s))))


class LCM1(_LCM):
    """LC module 1, Eqs. (1)-(6): U' = U + W2 ReLU(BN(W1 (softmax(l) g))).

    The layer feature g scales the channel features.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the hidden width is C // r. ValueError if r is larger than C.
        expand_bias: a bias on W2; by their parameter counts the paper's CIFAR DenseNets have it.
    """

    def forward(self, x):
        with full_precision(x):
            local = spatial_mean(x, self.w1.weight.dtype)  # l of Eq. (1), (N, C)
            s = local.softmax(1) * self.layer_feature(local)  # Eqs. (3), (4), (N, C) x (N, 1)
            z = self.bottleneck(s)  # Eq. (5)
            return x + z.to(x.dtype)[:, :, None, None]  # Eq. (6)


class LCM2(_LCM):
    """LC module 2, Eqs. (1), (2), (7)-(9): U' = U sigmoid(W2 ReLU(BN(W1 l)) + g).

    The layer feature g shifts the channel weights.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the hidden width is C // r. ValueError if r is larger than C.
        expand_bias: a bias on W2; by their parameter counts the paper's CIFAR DenseNets have it.
    """

    def forward(self, x):
        with full_precision(x):
            local = spatial_mean(x, self.w1.weight.dtype)  # l of Eq. (1), (N, C)
            u = self.bottleneck(local)  # Eq. (7)
            s = torch.sigmoid(u + self.layer_feature(local))  # Eq. (8), (N, C) + (N, 1)
            return x * s.to(x.dtype)[:, :, None, None]  # Eq. (9)
