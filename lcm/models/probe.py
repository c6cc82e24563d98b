"""What a network's layers and a stranger's modules make of a map, found by running them once."""

import contextlib

import torch
from torch.nn.parameter import is_lazy

from lcm.copies import twin
from lcm.errors import one_line
from lcm.models.weights import generators


def maps_through(network, layers, example):
    """{layer: [(what enters, what leaves), ...]}, a pair for each of its calls in one forward pass
    of `example`; {} without one.

    A copy runs, in evaluation mode and without gradients: the network and the random generators
    stay as they are.
    """
    if example is None:
        return {}
    runs = twin(network)
    # A deep copy has its modules in the same order: this pairs each with its copy.
    twins = dict(zip(network.modules(), runs.modules(), strict=True))
    found = {layer: [] for layer in layers}
    for layer, calls in found.items():

        def record(_, args, output, calls=calls):
            # The default binds this layer's list; a closure would see the last one of the loop.
            calls.append((args[0] if args else None, output))

        twins[layer].register_forward_hook(record)
    with torch.no_grad(), generators(0, "example"):
        runs(example)
    return found


def described(value):
    """A tensor by its shape and type, anything else by its kind."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def why(error):
    """The first line of an error; that of a ValueError is meant for users, others have a type."""
    own = str(error).partition("\n")[0] if isinstance(error, ValueError) else ""
    return own or one_line(error)


@contextlib.contextmanager
def no_late_tensors(module):
    """ValueError where a module gets a parameter or a buffer inside the block, or the shape of one:
    it would be drawn unseeded, and neither be trained nor fit a checkpoint."""

    def shapes():
        # What a checkpoint has: a buffer that is not persistent may be made late.
        saved = module.state_dict(keep_vars=True).items()
        # an extra state has no shape
        return {(n, getattr(x, "shape", None)) for n, x in saved if not is_lazy(x)}

    before = shapes()
    yield
    if late := shapes() - before:
        raise ValueError(
            f"its forward pass makes the parameter or buffer {min(name for name, _ in late)}: make "
            "it in the constructor, with its shape"
        )


def check_map(factory, shape):
    """ValueError where what a factory makes cannot stand where maps (C, H, W) pass.

    It has to keep shape and type in training and in evaluation, and to have its parameters from the
    constructor.
    """
    try:
        with torch.no_grad(), generators(0, "map"), torch.device("cpu"):
            module = twin(factory(shape[0]))  # it may be one that the caller trained
            # Two images: in training a batch norm of pooled vectors refuses one.
            x = torch.randn(2, *shape)
            with no_late_tensors(module):
                for mode in ("training", "evaluation"):
                    # A clone: a module may write into its map.
                    module.train(mode == "training")
                    y = module(x.clone())
                    if described(y) != described(x):
                        raise ValueError(
                            f"it makes {described(y)} of {described(x)} in {mode}, and has to keep "
                            "shape and type"
                        )
    except (Exception, SystemExit) as error:
        raise ValueError(f"at a map {shape}: {why(error)}") from error
