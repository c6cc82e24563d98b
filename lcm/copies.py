"""A copy of a network that runs in its place, so that modes, hooks and buffers stay as they are."""

import copy

import torch


def twin(network):
    """The copy of a module, with one copy of each tensor, in evaluation mode."""
    # What `nn.utils.weight_norm` computes is no leaf of the graph: deepcopy refuses such tensors.
    attributes = [value for module in network.modules() for value in vars(module).values()]
    computed = {id(x): x.detach().clone() for x in attributes if isinstance(x, torch.Tensor)}
    # deepcopy's memo, {id: copy}: what it names counts as copied.
    return copy.deepcopy(network, computed).eval()
