"""Initialisation: layers that know how their weights are drawn, and modules that depend on a seed
and their name alone.

A network is never initialised by one rule in a loop over its modules: the rule would reach
attention modules too, and undo the zeros with which some of them start.
"""

import contextlib
import functools
import hashlib
import random

import numpy as np
import torch
from torch import nn

from lcm import attention


class FanOutConv2d(nn.Conv2d):
    """Normal weights of variance 2 / fan-out (He et al. 2015), as in ResNets, and no bias."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class FanInConv2d(nn.Conv2d):
    """Normal weights of variance 2 / fan-in (He et al. 2015), as in torchvision's DenseNets."""

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight)


class ZeroBiasLinear(nn.Linear):
    """A linear layer whose bias starts at zero; its weights are PyTorch's."""

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.bias)


def new_module(make, seed, name=""):
    """The module that `make()` constructs, its random values a function of the seed and its dotted
    name alone.

    It keeps every value that `make` set. Only where `make` (or what it is a functools.partial of)
    is an attention of this project, or one of its networks, which say `drawn_by_layer = True`, is
    all drawn again layer by layer: a layer of a backbone is then the same whatever stands between
    the layers. With seed None nothing is fixed: the values come from the global generators.
    """
    if seed is None:
        return make()
    with generators(seed, name):
        module = make()
    while isinstance(make, functools.partial):  # Hydra's are partials, too
        make = make.func
    # Not a subclass, nor somebody else's function that makes one of them: it may load weights.
    # Hence `__dict__`, in which a derived class does not have the mark.
    if "drawn_by_layer" in getattr(make, "__dict__", ()) or make in vars(attention).values():
        draw_weights(module, seed, prefix=name)
    return module


@contextlib.contextmanager
def generators(seed, name):
    """Start the CPU's generators of torch, numpy and Python from (seed, name); restore them
    afterwards."""
    key = _key(seed, name)
    numpys, pythons = np.random.get_state(), random.getstate()
    # () forks the CPU's generator alone. torch.manual_seed would seed those of all GPUs, too.
    with torch.random.fork_rng(()):
        torch.default_generator.manual_seed(key)
        np.random.seed(key % 2**32)  # it takes 32 bits
        random.seed(key)
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)


def draw_weights(network, seed, prefix=""):
    """Draw the weights of each layer anew, from a generator keyed by the seed and the layer's
    dotted name.

    A layer's weights therefore depend on nothing else: networks that differ in their attention
    start from the same backbone, bit for bit, and so do networks drawn in another order. The
    distributions are those of the layers' own `reset_parameters`. The global random state is left
    as it was. Draw before the network is moved to another device, and before `fill_sites(after=)`,
    which renames what a module follows.

    Args:
        network: a module, changed in place.
        seed: an integer.
        prefix: the dotted name of `network` within a larger one.

    Raises:
        ValueError: a parameter is not on the CPU, whose generator is used, or is not drawn by its
            module's `reset_parameters` (as those of weight norm).
        AttributeError: a module has parameters of its own but no `reset_parameters`.
    """
    # `reset_parameters` takes no generator: the global one is seeded anew for each layer.
    with torch.random.fork_rng(()):
        for name, layer in network.named_modules(prefix=prefix):
            parameters = list(layer.parameters(recurse=False))
            if not parameters:
                continue
            if any(parameter.device.type != "cpu" for parameter in parameters):
                raise ValueError(
                    f"weights are drawn on the CPU: draw those of {name} before it is moved away"
                )
            for parameter in parameters:
                nn.init.constant_(parameter, torch.nan)
            torch.default_generator.manual_seed(_key(seed, name))
            layer.reset_parameters()
            if any(parameter.isnan().any() for parameter in parameters):
                raise ValueError(f"{name}: `reset_parameters` leaves a parameter as it is")


def _key(seed, name):
    # Not hash(), which is salted in each process. Seeds that differ by 1 get unrelated keys.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
