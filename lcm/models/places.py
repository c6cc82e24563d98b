"""Sites, and the layers of any network by name: which a pattern means, how wide they are."""

import fnmatch
import re
from typing import NamedTuple

from torch import nn
from torch.utils._pytree import tree_leaves

from lcm.errors import nearest
from lcm.models.attended import unwrapped
from lcm.models.probe import described

# What holds a network that must not change any more; by name, because importing them takes seconds.
WRAPPERS = {
    "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule",
    "OptimizedModule", "ScriptModule",
}  # fmt: skip


class Site(nn.Identity):
    """An identity at a place where a module (N, C, H, W) -> (N, C, H, W) can stand.

    Args:
        channels: C of the maps that pass here.
        stage: the stage of the network, from 1.
    """

    def __init__(self, channels, stage):
        super().__init__()
        self.channels = channels
        self.stage = stage


class Place(NamedTuple):
    """Where a module stands: its dotted name, and the parent with its key there."""

    name: str
    parent: nn.Module
    key: str
    module: nn.Module


def places(module, prefix=""):
    """Every module below one, under each of its names before attention was put behind layers."""
    module = unwrapped(module)
    # Not named_modules(): it gives a shared module once, and each of its places has to be
    # changed. Attention behind a layer is no place: no pattern reaches into it.
    for key, child in module._modules.items():
        if child is not None:
            yield Place(prefix + key, module, key, child)
            yield from places(child, f"{prefix}{key}.")


def sites(network):
    """The places of the sites that are not filled, in the network's order."""
    return [place for place in places(network) if isinstance(place.module, Site)]


def matching(network, pattern):
    """The places whose names fit, no * reaching across a dot. ValueError where there is none."""
    if not isinstance(pattern, str):
        raise ValueError(f'{pattern!r} is no pattern of names: give one text, such as "*.bn2"')
    wanted = pattern.split(".")
    every = {place: place.name.split(".") for place in places(network)}
    found = [
        place
        for place, parts in every.items()
        if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
    ]
    if not found:
        kind, names = type(network).__name__, [place.name for place in every]
        raise ValueError(
            f"no module of {kind} has a name like {pattern!r}{nearest(pattern, names)}"
        )
    return found


def refuse_wrapped(network):
    """ValueError where the network or a part of it is wrapped, compiled or scripted."""
    for name, module in network.named_modules():
        # FSDP2 gives a module a class derived from FSDPModule: hence the MRO.
        # `module.compile()` keeps the class and sets this attribute.
        kinds = {kind.__name__ for kind in type(module).__mro__} & WRAPPERS
        if kinds or module._compiled_call_impl is not None:
            what = f"wrapped in {min(kinds)}" if kinds else "compiled"
            raise ValueError(
                f"{name or 'the network'} is {what}, which does not see a change: change the "
                "network first"
            )


def refuse_listed(network, layers):
    """ValueError where the network holds one of the layers in a plain list, tuple or dict as well:
    its forward pass would go on calling the layer there."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            held = tree_leaves(value) if key != "_modules" else ()
            if any(isinstance(item, nn.Module) and item in layers for item in held):
                raise ValueError(
                    f"{name}.{key}".strip(".") + f" is a plain {type(value).__name__}, which would "
                    "keep the layer without attention: make it nn.ModuleList or nn.ModuleDict"
                )


# Layers that say how many channels their maps have, and where.
WIDTH = {
    Site: "channels",
    nn.BatchNorm2d: "num_features",
    nn.SyncBatchNorm: "num_features",
    nn.InstanceNorm2d: "num_features",
    nn.GroupNorm: "num_channels",
    nn.Conv2d: "out_channels",
    nn.ConvTranspose2d: "out_channels",
}


def map_shape(place, calls, keeps):
    """(C, H, W) of the maps that a layer makes, or (C,) where it is not called but says so itself.

    Args:
        place: the layer's.
        calls: of the layer, as `maps_through` has found them; None where nothing was run.
        keeps: whether the layer has to keep the shape of its maps.
    """
    layer = unwrapped(place.module)
    said = f"{place.name} is a {type(layer).__name__}"
    if calls == [] and isinstance(layer, Site):
        raise ValueError(f"{said} that the network's forward pass does not call")
    if not calls:
        for kind, key in WIDTH.items():
            # A convolution does not say that what enters it has the same shape.
            if isinstance(layer, kind) and not (keeps and key == "out_channels"):
                return (getattr(layer, key),)
        # other libraries' norms of maps: FrozenBatchNorm2d, LayerNorm2d, RmsNorm2d;
        # their weight has one value a channel, in the shape (C,) or (1, C, 1, 1)
        weight = getattr(layer, "weight", None)
        if re.fullmatch(r"\w*Norm\w*2d", type(layer).__name__) and weight is not None:
            return (weight.numel(),)
        raise ValueError(
            f"{said}, which does not say how many channels its maps have: give an `example` of the "
            "network's input with which it is called, or name a convolution or a norm of maps"
        )
    for entering, leaving in calls:
        if getattr(leaving, "ndim", 0) != 4 or _channels_last(layer, place.parent, leaving):
            raise ValueError(f"{said}, which makes {described(leaving)}, no map (N, C, H, W)")
        if keeps and getattr(entering, "shape", None) != leaving.shape:
            raise ValueError(
                f"{said}, which makes {described(leaving)} of {described(entering)}: only what "
                "keeps the shape of its map can be replaced by attention"
            )
    widths = sorted({leaving.shape[1] for _, leaving in calls})
    # One activation often stands for several. What has parameters shares them, and a Site may be in
    # a block that does.
    if len(widths) > 1 or (
        len(calls) > 1 and not isinstance(layer, Site) and next(layer.parameters(), None) is None
    ):
        raise ValueError(
            f"{said} that is called {len(calls)} times, with maps of "
            f"{', '.join(map(str, widths))} channels: one module would stand at all these places"
        )
    return tuple(calls[0][1].shape[1:])


def _channels_last(layer, parent, maps):
    """Whether a layer has its channels last, (N, H, W, C), as its linear layers and norms tell."""
    if isinstance(layer, Site):
        return maps.shape[1] != layer.channels
    # Linear layers and layer norms work on the last axis: where C is last, it has their width.
    widths = {part.out_features for part in layer.modules() if isinstance(part, nn.Linear)}
    # An activation or a permutation has none: what stands beside it tells.
    alone = next(layer.parameters(), None) is None
    beside = [unwrapped(part) for part in parent.children()] if alone else []
    widths |= {part.in_features for part in beside if isinstance(part, nn.Linear)}
    parts = [*layer.modules(), *beside]
    # Norms of libraries, too. That of a LayerNorm2d, of NCHW maps, is also the width of axis 1.
    widths |= {part.normalized_shape[-1] for part in parts if hasattr(part, "normalized_shape")}
    _, first, second, third = maps.shape
    # The network's head may be as wide as a map: a square one passes for (N, C, H, H).
    square = second == third != first
    # Where axis 1 has such a width, too, the maps pass for (N, C, H, W).
    return third in widths and first not in widths and not square
