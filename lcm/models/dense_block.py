"""Two equal forward passes of a dense block: a plain one, and one with memory linear in its depth.

The second is that of G. Pleiss et al., "Memory-Efficient Implementation of DenseNets", 2017,
https://arxiv.org/abs/1707.06990: what a layer makes of the maps that it reads is not kept, but
computed once more for the layer's backward pass.
"""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcm.models.weights import FanOutConv2d


def concatenate(layers, x):
    """Dense layers one after the other, each fed with `x` and the new maps of all before it, which
    it concatenates anew.

    Args:
        layers: modules (N, C + i k, H, W) -> (N, k, H, W), i counted from 0.
        x: (N, C, H, W).

    Returns:
        (N, C + layers k, H, W): `x` and all new maps. Memory grows as the square of their number.
    """
    for layer in layers:
        x = torch.cat((x, layer(x)), 1)
    return x


def recompute(layers, x):
    """What `concatenate` computes, in memory linear in depth: only the new maps are kept.

    Args:
        layers: as for `concatenate`; they also take a list of maps, as `DenseLayer` does.
        x: (N, C, H, W).
    """
    if torch.compiler.is_compiling():
        # No decorator: it would import torch._dynamo, a second of start-up.
        return torch.compiler.disable(recompute)(layers, x)
    maps = [x]
    for layer in layers:
        maps.append(layer(maps))
    return torch.cat(maps, 1)


def recomputed(layer, maps):
    """layer.new_maps of the joined `maps`, of which only the list is kept for the backward pass."""
    # A capture cannot hold the generators' state; a batch norm and a convolution draw nothing.
    plain = (type(layer.bn), type(layer.conv)) == (nn.BatchNorm2d, FanOutConv2d)
    return checkpoint(
        lambda *maps: layer.new_maps(torch.cat(maps, 1)),
        *maps,
        use_reentrant=False,
        preserve_rng_state=not plain,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(layer)),
    )


@contextlib.contextmanager
def _statistics_kept(layer):
    """Norms see the same maps a second time: their running statistics stay."""
    kept = [buffer.clone() for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(layer.buffers(), kept, strict=True):
            buffer.data.copy_(value)  # .data: autograd, which keeps them, would find them changed
