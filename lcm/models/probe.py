"""What a network's layers and a stranger's modules make of a map, found by running them once."""

import contextlib

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lcm.errors import one_line
from lcm.models.weights import generators


@contextlib.contextmanager
def evaluation(network):
    """Evaluation mode inside the block; afterwards each module has the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def maps_through(network, layers, example):
    """{layer: [(what enters, what leaves), ...]}, a pair for each of its calls in one forward pass
    of `example`.

    The pass is in evaluation mode and without gradients. Modes, buffers and the random generators
    are as before. Raises ValueError where it fails.
    """
    found = {layer: [] for layer in layers}

    def record(layer, args, output):
        found[layer].append((args[0] if args else None, output))

    handles = [layer.register_forward_hook(record) for layer in found]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with evaluation(network), torch.no_grad(), generators(0, "example"):
            functional_call(network, buffers, (example,))
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} fails on {in_words(example)}: {one_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def in_words(value):
    """A tensor by its shape and type, anything else by its kind."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


@contextlib.contextmanager
def no_late_parameters(module):
    """ValueError where a module gets a parameter inside the block, or the shape of one: it would
    be drawn unseeded, and not be trained."""

    def names():
        return {name for name, parameter in module.named_parameters() if not is_lazy(parameter)}

    before = names()
    yield
    if late := names() - before:
        raise ValueError(
            f"its forward pass makes the parameter {min(late)}: make it in the constructor, with "
            "its shape"
        )


def on_meta_or_cpu(attempt, said):
    """What `attempt(device)` returns: on the meta device, where nothing is computed, and once more
    on the CPU if it fails there, as with modules that read values.

    Raises ValueError, `said` and one line of why, where both fail.
    """
    try:
        return attempt("meta")
    except Exception:
        try:
            return attempt("cpu")
        except Exception as error:
            own = isinstance(error, ValueError) and str(error).partition("\n")[0]
            raise ValueError(f"{said}: {own or one_line(error)}") from error


def check_map(make, shape, said):
    """Raise ValueError, `said` and why, where a module cannot stand where maps of this shape pass.

    `make(device)` builds it. It has to keep shape and type in training and in evaluation, and to
    have its parameters from the constructor.
    """

    def attempt(device):
        module = make(device)
        if not isinstance(module, nn.Module):
            raise ValueError(f"{in_words(module)} is no torch.nn.Module")
        x = torch.randn(shape, device=device)
        with no_late_parameters(module):
            for mode in ("training", "evaluation"):
                _check_pass(module, x, mode)

    with torch.no_grad(), generators(0, "map"):
        on_meta_or_cpu(attempt, said)


def _check_pass(module, x, mode):
    try:
        y = module.train(mode == "training")(x.clone())
    except Exception as error:
        why = f"it fails on a map {in_words(x)} in {mode}: {one_line(error)}"
        raise ValueError(why) from error
    if not isinstance(y, torch.Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"it makes {in_words(y)} of a map {in_words(x)} in {mode}, and has to keep shape and "
            "type"
        )
