"""Batch-norm folding: for evaluation, each batch norm that follows a convolution becomes part of that convolution.

In evaluation a batch norm is one factor and one summand a channel. Where its input is the output of a convolution that nothing
else reads, both are folded into the convolution's weight and bias: the same function, up to rounding, with one pass over the map
less. Modules that have a faster form for evaluation (`for_evaluation`) are replaced by it.
"""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lcm.attention.vector import VectorConv
from lcm.models.dense_block import factor_and_summand

# Forward passes that are linear in the layer's weight and bias; a layer with any other is not folded.
LINEAR = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Linear.forward, VectorConv.forward}


@torch.inference_mode(
    False
)  # the autograd graph of a forward pass is read, also where the caller is in inference mode
def fold(network, image_size):
    """A network that computes what `network` computes in evaluation mode, with batch norms folded into convolutions.

    It shares all other tensors with `network`, which is not changed; after a change of the weights, fold again. Where nothing can
    be folded or replaced, it is `network` itself, in its present mode. For use without gradients: folded dense blocks have none.

    Args:
        network: images (N, 3, image_size, image_size) -> logits. It runs once, on one black image.
        image_size: height and width in pixels.
    """
    tensors = (*network.parameters(), *network.buffers())
    folded = copy.deepcopy(
        network, {id(tensor): tensor for tensor in tensors}
    ).eval()  # new modules, the same tensors
    pairs = _foldable(folded, next(network.parameters()).new_zeros(1, 3, image_size, image_size))
    for layer, name in pairs:
        _absorb(layer, folded.get_submodule(name))
        folded.set_submodule(name, nn.Identity().eval())
    replaceable = [
        (n, part)
        for n, part in folded.named_modules()
        if hasattr(part, "for_evaluation") and not _hooked(part)
    ]
    for name, module in replaceable:
        folded.set_submodule(name, module.for_evaluation().eval())
    return folded if pairs or replaceable else network


def _hooked(network):
    """Whether one of its modules has a forward hook, as `fill_sites(..., after=)` registers them."""
    return any(module._forward_hooks for module in network.modules())


def _foldable(network, image):
    """Pairs (layer, name of the batch norm) in which the batch norm is the only reader of the layer's output.

    Found in the autograd graph of one forward pass, not by names or by the order of the modules.
    """
    made, calls, norms = {}, Counter(), []  # made: node of the graph -> layer
    handles = []

    def linear_hook(layer, args, output):
        calls[layer] += 1
        made[output.grad_fn] = layer

    def norm_hook(name):
        def hook(norm, args, output):
            calls[norm] += 1
            norms.append((name, norm, output.grad_fn))

        return hook

    for name, module in network.named_modules():
        if module._forward_hooks:  # as `_hooked`
            continue
        if type(module).forward in LINEAR:
            handles.append(module.register_forward_hook(linear_hook))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_hook(norm_hook(name)))
    try:
        with torch.enable_grad():
            logits = network(image.requires_grad_())
    finally:
        for handle in handles:
            handle.remove()

    readers, seen, open_nodes = Counter(), set(), [logits.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [before for before, _ in node.next_functions]
        readers.update(inputs)
        open_nodes += inputs
    pairs = []
    for name, norm, node in norms:
        source = node.next_functions[0][0]
        layer = made.get(source)
        if layer is not None and readers[source] == 1 and calls[layer] == calls[norm] == 1:
            pairs.append((layer, name))
    return pairs


@torch.no_grad()
def _absorb(layer, norm):
    """Fold `norm` into the weight and bias of `layer` before it, in float64."""
    weight = layer.weight
    factor, bias = factor_and_summand(norm)
    if layer.bias is not None:
        bias = bias + layer.bias * factor
    scaled = weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
