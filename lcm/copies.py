"""Run a network without changing it: on a copy, or with its buffers put back."""

import contextlib
import copy

import torch
from torch.utils._pytree import tree_leaves


def twin(network):
    """The copy of a module, with one copy of each tensor, in evaluation mode."""
    # What `nn.utils.weight_norm` computes, and maps that a network keeps in a list, are no leaves
    # of the graph: deepcopy refuses such tensors.
    held = [x for module in network.modules() for x in tree_leaves(vars(module))]
    computed = {
        id(x): x.detach().clone() for x in held if isinstance(x, torch.Tensor) and not x.is_leaf
    }
    # deepcopy's memo, {id: copy}: what it names counts as copied.
    copied = copy.deepcopy(network, computed)
    copied.eval()  # a network's own `eval` and `train` may return nothing
    return copied


@contextlib.contextmanager
def buffers_kept(module):
    """A block after which the module's buffers, running statistics for example, are as before."""
    kept = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(module.buffers(), kept, strict=True):
            buffer.data.copy_(value)  # .data: autograd, which keeps them, would find them changed
