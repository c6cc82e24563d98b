"""A network for evaluation alone: each batch norm that follows a convolution becomes part of that convolution.

In evaluation a batch norm is one factor and one summand a channel. Where the maps that it reads come straight from a
convolution that nothing else reads, both go into the convolution's weight and bias: the same function, up to rounding,
in one pass over the map less. Modules that know a quicker form of themselves for evaluation (`for_evaluation`) take it.
"""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lcm.attention.vector import VectorConv
from lcm.models.dense_block import factor_and_summand

# Forward passes that are linear in the layer's weight and bias; a subclass with another forward pass is left alone.
LINEAR = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Linear.forward, VectorConv.forward}


@torch.inference_mode(False)  # the graph of a forward pass is read, whatever mode the caller is in
def fold(network, image_size):
    """A network that computes what `network` computes in evaluation mode, with its batch norms folded where that is exact.

    The result shares all other tensors with `network`, which stays as it is, its mode and its gradients included; fold
    again when weights have changed. Where there is nothing to gain, the result is `network` itself, in its own mode.
    It is made for use without gradients: dense blocks have none.

    Args:
        network: images (N, 3, image_size, image_size) -> logits. It runs once, on a black image.
        image_size: height and width in pixels.
    """
    tensors = (*network.parameters(), *network.buffers())
    folded = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}).eval()  # new modules, the same tensors
    pairs = _foldable(folded, next(network.parameters()).new_zeros(1, 3, image_size, image_size))
    for layer, name in pairs:
        _absorb(layer, folded.get_submodule(name))
        folded.set_submodule(name, nn.Identity().eval())
    quicker = [(name, module) for name, module in folded.named_modules() if hasattr(module, "for_evaluation")]
    for name, module in quicker:
        folded.set_submodule(name, module.for_evaluation().eval())
    return folded if pairs or quicker else network


def _foldable(network, image):
    """Pairs (layer, name of the batch norm) in which the batch norm alone reads what the layer makes.

    Found in the graph of one forward pass, not by names or by the order of the modules.
    """
    made, calls, norms = {}, Counter(), []  # node of the graph -> the layer that made it; (name, node)
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
        if module._forward_hooks:  # something stands behind it, `fill_sites(..., after=)`
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
    """Give `layer` the weight and bias with which it does what `norm` did after it, computed in float64."""
    weight = layer.weight
    factor, bias = factor_and_summand(norm)
    if layer.bias is not None:
        bias = bias + layer.bias * factor
    scaled = weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
