"""The forward pass of a dense block with memory linear in its depth.

G. Pleiss et al., "Memory-Efficient Implementation of DenseNets", 2017,
https://arxiv.org/abs/1707.06990: what a layer makes of the maps that it reads is not kept, but
computed once more for the layer's backward pass.
"""

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcm.copies import buffers_kept
from lcm.models.weights import FanOutConv2d


def with_recomputation(layers, x):
    """What `DenseBlock` computes, of whose maps only the new ones are kept.

    Args:
        layers: modules, each of a list of maps (N, C, H, W), (N, k, H, W), ... -> (N, k, H, W).
        x: (N, C, H, W).

    Returns:
        (N, C + layers k, H, W): `x` and all new maps.
    """
    if torch.compiler.is_compiling():
        # No decorator: it would import torch._dynamo, a second of start-up.
        return torch.compiler.disable(with_recomputation)(layers, x)
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
        # The recomputation shows a batch norm the same maps once more.
        context_fn=lambda: (contextlib.nullcontext(), buffers_kept(layer)),
    )
