"""Initialisation: layers that know how their weights are drawn, and `draw_weights`, which draws each under its own name.

A network is never initialised by one rule in a loop over its modules: the rule would reach attention modules too, and
undo the zeros with which some of them start.
"""

import hashlib

import torch
from torch import nn


class FanOutConv2d(nn.Conv2d):
    """A convolution with normal weights of variance 2 / fan-out (He et al. 2015), as ResNets begin, and no bias."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class FanInConv2d(nn.Conv2d):
    """A convolution with normal weights of variance 2 / fan-in (He et al. 2015), as torchvision's DenseNets are."""

    def reset_parameters(self):
        nn.init.kaiming_normal_(self.weight)


class ZeroBiasLinear(nn.Linear):
    """A linear layer whose bias starts at zero; its weights are PyTorch's."""

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.bias)


def draw_weights(network, seed, prefix=""):
    """Draw the weights of each layer anew, from a generator keyed by the seed and the layer's dotted name.

    A layer's weights therefore depend on nothing else: networks that differ in their attention start from the same
    backbone, bit for bit, and so do networks drawn in another order. The distributions are those of the layers' own
    `reset_parameters`. The global random state is left as it was. Draw before the network is moved to another device.

    Args:
        network: a module, changed in place.
        seed: an integer.
        prefix: the dotted name of `network` within a larger one.

    Raises:
        ValueError: a parameter is not on the CPU, whose generator is used.
        TypeError: a module has parameters of its own but no `reset_parameters`.
    """
    state = torch.get_rng_state()
    try:
        for name, layer in network.named_modules(prefix=prefix):
            parameters = list(layer.parameters(recurse=False))
            if not parameters:
                continue
            if any(parameter.device.type != "cpu" for parameter in parameters):
                raise ValueError(
                    f"weights are drawn on the CPU: draw those of {name} before it is moved away"
                )
            if not hasattr(layer, "reset_parameters"):
                raise TypeError(
                    f"{name}: a {type(layer).__name__} has parameters but no reset_parameters to draw them"
                )
            key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            torch.default_generator.manual_seed(int.from_bytes(key[:8], "big", signed=True))
            layer.reset_parameters()
    finally:
        torch.set_rng_state(state)
