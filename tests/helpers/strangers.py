"""Modules and images that tests put into networks of other libraries."""

import torch
from torch import nn

from lcm.attention import SqueezeExcite


class Scale(nn.Module):
    """A number a channel: what stands behind a layer and cannot be overlooked."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.7, 1.4, channels))

    def forward(self, x):
        return x * self.scale[:, None, None]


def se(channels):
    return SqueezeExcite(channels, 2)


def images(size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
