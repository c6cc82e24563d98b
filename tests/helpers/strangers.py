"""Modules and images that tests put into networks of other libraries."""

import random

import numpy as np
import torch
from plain import digest
from torch import nn

from lcm.attention import SqueezeExcite


class Scale(nn.Module):
    """A number a channel: what stands behind a layer and cannot be overlooked."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.7, 1.4, channels))

    def forward(self, x):
        return x * self.scale[:, None, None]


class Calls(nn.Module):
    """Layers and parameters by name, and call(self, x) as the forward pass."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.call(self, x)


class Mute(Calls):
    """Its `train`, and so `eval`, returns nothing."""

    def train(self, mode=True):
        super().train(mode)


def child(name):
    """Calls a child of this name."""
    return Calls(lambda m, x: getattr(m, name)(x), **{name: nn.Conv2d(3, 3, 1)})


def se(channels):
    return SqueezeExcite(channels, 2)


def images(size=32, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def state(network):
    """All that an error may not touch: modules, modes, tensors, random generators."""
    names = [(name, type(m), m.training) for name, m in network.named_modules()]
    generators = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    return names, digest(network.state_dict()), generators
