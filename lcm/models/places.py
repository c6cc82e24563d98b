"""Sites, and the layers of any network by name: which a pattern means, how wide they are."""

import fnmatch
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lcm.errors import nearest
from lcm.models.attended import Attended, attentions
from lcm.models.probe import in_words

# What holds a network that must not change any more; by name, because importing them takes seconds.
WRAPPERS = {
    "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule",
    "OptimizedModule", "ScriptModule",
}  # fmt: skip
NOT_OF_MAPS = (nn.BatchNorm1d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm3d)


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

    def extra_repr(self):
        return f"{self.channels}, stage={self.stage}"


def sites(network):
    """The sites that are not filled: a list of (dotted name, `Site`) in the network's order."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, Site)]


class Place(NamedTuple):
    """Where a module stands: its dotted name, and the parent with its key there."""

    name: str
    parent: nn.Module
    key: str
    module: nn.Module


def places(module, prefix=""):
    """Every module below one, under each of its names before attention was put behind layers."""
    module = module.layer if isinstance(module, Attended) else module
    for key, child in module._modules.items():
        if child is not None and key not in attentions(module):
            yield Place(prefix + key, module, key, child)
            yield from places(child, f"{prefix}{key}.")


def fits(name, pattern):
    """Whether a dotted name is like a pattern, of which no * reaches across a dot."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def matching(network, pattern):
    """The places whose names fit. ValueError where there is none, or one that must not change."""
    every = list(places(network))
    found = [place for place in every if fits(place.name, pattern)]
    if not found:
        kind, names = type(network).__name__, [place.name for place in every]
        raise ValueError(
            f"no module of {kind} has a name like {pattern!r}{nearest(pattern, names)}"
        )
    for place in found:
        refuse_wrapped(network, place.name)
    return found


def refuse_wrapped(network, name):
    """ValueError where the network or a module around `name` is wrapped, compiled or scripted."""
    parts = name.split(".")
    for path in ("", *(".".join(parts[:i]) for i in range(1, len(parts)))):
        module = network.get_submodule(path) if path else network
        kinds = {kind.__name__ for kind in type(module).__mro__} & WRAPPERS
        if kinds or getattr(module, "_compiled_call_impl", None) is not None:
            what = f"wrapped in {min(kinds)}" if kinds else "compiled"
            raise ValueError(
                f"{path or 'the network'} is {what}, which does not see a change: fill the network "
                "first"
            )


def width(name, layer, calls, replaced=False):
    """(C, (C, H, W)) of the maps that a layer makes; (C, None) where no forward pass has told."""
    kind = type(layer.layer if isinstance(layer, Attended) else layer).__name__
    if not calls.get(layer):
        if written := _written_width(layer, replaced):
            return written, None
        raise ValueError(
            f"{name} is a {kind}, which does not say how many channels its maps have: "
            + (
                "it is not called with the example either"
                if calls
                else "give an `example` of the network's input, or name a convolution or a norm "
                "of maps"
            )
        )
    for entering, leaving in calls[layer]:
        if (
            not isinstance(leaving, torch.Tensor)
            or leaving.dim() != 4
            or _channels_last(layer, leaving)
        ):
            raise ValueError(
                f"{name} is a {kind}, which makes {in_words(leaving)}, no map (N, C, H, W)"
            )
        if replaced and getattr(entering, "shape", None) != leaving.shape:
            raise ValueError(
                f"{name} is a {kind}, which makes {in_words(leaving)} of {in_words(entering)}: "
                "only what keeps the shape of its map can be replaced by attention"
            )
    widths = sorted({leaving.shape[1] for _, leaving in calls[layer]})
    if len(widths) > 1:
        raise ValueError(
            f"{name} is a {kind} that is called with maps of {', '.join(map(str, widths))} "
            "channels: one module cannot follow them all"
        )
    return widths[0], tuple(calls[layer][0][1].shape[1:])


def _channels_last(layer, maps):
    """Whether a layer has its channels last, (N, H, W, C), as its linear layers and norms tell."""
    widths = {part.out_features for part in layer.modules() if isinstance(part, nn.Linear)}
    norms = [part for part in layer.modules() if type(part) in (nn.LayerNorm, nn.RMSNorm)]
    widths |= {norm.normalized_shape[-1] for norm in norms}
    return maps.shape[3] in widths and maps.shape[1] not in widths


def _written_width(layer, replaced):
    """C of the maps that a layer makes (and keeps, if it is to be replaced), where it says so."""
    layer = layer.layer if isinstance(layer, Attended) else layer
    kind = type(layer).__name__
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return None if replaced else layer.out_channels
    if isinstance(layer, Site):
        return layer.channels
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if isinstance(layer, (_BatchNorm, _InstanceNorm)) and not isinstance(layer, NOT_OF_MAPS):
        return layer.num_features
    # Norms of maps of other libraries: FrozenBatchNorm2d, LayerNorm2d, RmsNorm2d, ...
    if "Norm" in kind and kind.endswith("2d") and not isinstance(layer, NOT_OF_MAPS):
        shape = (
            getattr(layer, "normalized_shape", None)
            or getattr(layer, "weight", torch.empty(0)).shape
        )
        return getattr(layer, "num_features", None) or next(iter(shape), None)
    return None
