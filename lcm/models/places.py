"""Sites, and the layers of any network by name: which a pattern means, how wide they are."""

import fnmatch
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lcm.errors import nearest
from lcm.models.attended import attentions, unwrapped
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


class Place(NamedTuple):
    """Where a module stands: its dotted name, and the parent with its key there."""

    name: str
    parent: nn.Module
    key: str
    module: nn.Module


def places(module, prefix=""):
    """Every module below one, under each of its names before attention was put behind layers."""
    module = unwrapped(module)
    for key, child in module._modules.items():
        if child is not None and key not in attentions(module):
            yield Place(prefix + key, module, key, child)
            yield from places(child, f"{prefix}{key}.")


def sites(network):
    """The sites that are not filled: a list of (dotted name, `Site`) in the network's order."""
    return [(p.name, p.module) for p in places(network) if isinstance(p.module, Site)]


def fits(name, pattern):
    """Whether a dotted name is like a pattern, of which no * reaches across a dot."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def matching(network, pattern):
    """The places whose names fit. ValueError where there is none."""
    every = list(places(network))
    found = [place for place in every if fits(place.name, pattern)]
    if not found:
        kind, names = type(network).__name__, [place.name for place in every]
        raise ValueError(
            f"no module of {kind} has a name like {pattern!r}{nearest(pattern, names)}"
        )
    return found


def refuse_wrapped(network):
    """ValueError where the network or a part of it is wrapped, compiled or scripted."""
    for name, module in network.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__} & WRAPPERS
        if kinds or module._compiled_call_impl is not None:
            what = f"wrapped in {min(kinds)}" if kinds else "compiled"
            raise ValueError(
                f"{name or 'the network'} is {what}, which does not see a change: change the "
                "network first"
            )


def width(place, calls, keeps):
    """(C, (C, H, W)) of the maps that a layer makes; (C, None) where no forward pass has told.

    Args:
        place: the layer's.
        calls: what `maps_through` has found, or {}.
        keeps: whether the layer has to keep the shape of its maps.
    """
    layer = unwrapped(place.module)
    said = f"{place.name} is a {type(layer).__name__}"
    if not calls.get(place.module):
        written = _written_width(layer)
        if written and not (keeps and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))):
            return written, None
        hint = "give an `example` of the network's input, or name a convolution or a norm of maps"
        hint = "it is not called with the example either" if calls else hint
        raise ValueError(f"{said}, which does not say how many channels its maps have: {hint}")
    for entering, leaving in calls[place.module]:
        if getattr(leaving, "ndim", 0) != 4 or _channels_last(layer, leaving):
            raise ValueError(f"{said}, which makes {in_words(leaving)}, no map (N, C, H, W)")
        if keeps and getattr(entering, "shape", None) != leaving.shape:
            raise ValueError(
                f"{said}, which makes {in_words(leaving)} of {in_words(entering)}: only what keeps "
                "the shape of its map can be replaced by attention"
            )
    shapes = [tuple(leaving.shape[1:]) for _, leaving in calls[place.module]]
    widths = sorted({channels for channels, _, _ in shapes})
    if len(widths) > 1:
        raise ValueError(
            f"{said} that is called with maps of {', '.join(map(str, widths))} channels: one "
            "module cannot follow them all"
        )
    return widths[0], shapes[0]


def _channels_last(layer, maps):
    """Whether a layer has its channels last, (N, H, W, C), as its linear layers and norms tell."""
    widths = {part.out_features for part in layer.modules() if isinstance(part, nn.Linear)}
    norms = [part for part in layer.modules() if type(part) in (nn.LayerNorm, nn.RMSNorm)]
    widths |= {norm.normalized_shape[-1] for norm in norms}
    return maps.shape[3] in widths and maps.shape[1] not in widths


def _written_width(layer):
    """C of the maps that a layer makes, where it says so, else None."""
    kind = type(layer).__name__
    named = "Norm" in kind and kind.endswith("2d")  # other libraries': LayerNorm2d, RmsNorm2d, ...
    norm = named or isinstance(layer, (nn.GroupNorm, _BatchNorm, _InstanceNorm))
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return layer.out_channels
    if isinstance(layer, Site):
        return layer.channels
    if not norm or isinstance(layer, NOT_OF_MAPS):
        return None
    for key in ("num_features", "num_channels", "normalized_shape"):
        if hasattr(layer, key):
            found = getattr(layer, key)
            return found if isinstance(found, int) else found[0]
    weight = getattr(layer, "weight", None)  # FrozenBatchNorm2d has nothing else
    return None if weight is None else len(weight)
