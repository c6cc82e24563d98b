"""Putting attention into a network: at its sites, or behind any of its modules."""

import fnmatch
import sys

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lcm.errors import nearest
from lcm.models.sites import sites
from lcm.models.weights import draw_weights


def add_sites(network):
    """Give the blocks of a torchvision ResNet, ResNeXt, Wide ResNet or DenseNet their sites; returns the network.

    The network keeps its layers, their names and their weights, and computes what it computed before. Any other network
    is left as it is.
    """
    # torchvision takes a second to import; only a program that has imported it can have one of its networks.
    if "torchvision" in sys.modules:
        from lcm.models.imagenet import add_sites as add

        add(network)
    return network


def fill_sites(network, factory, where="every", seed=None, after=None):
    """Put new attention modules into a network, in place.

    Args:
        network: a network with sites, or one of torchvision's residual or dense networks, which is given its sites first. With
            `after`: any network.
        factory: a callable from a channel count to a module that keeps the shape of its map (N, C, H, W).
        where: "every" site; {"stages": [2, 3]}, the sites of those stages; or {"last_of_stage": 2}, one site.
        seed: if given, the new modules' weights are drawn by `draw_weights` under this seed.
        after: a pattern of dotted module names, such as "layer*.*.bn3"; no * reaches across a dot. A module is put behind each
            convolution or norm whose name fits, as that layer's child `attention`. No name that was there before changes:
            weights can be loaded before, or after with strict=False.

    Returns:
        The network.

    Raises:
        ValueError: no free site, no such stage, no name that fits, or a module without a number of channels.
    """
    if after is not None:
        if where != "every":
            raise ValueError("`where` chooses among sites: give `where` or `after`, not both")
        return _fill_behind(network, factory, after, seed)
    free = sites(network) or sites(add_sites(network))
    if not free:
        raise ValueError(
            f'{type(network).__name__} has no free site: name the modules that attention is to follow (after="layer*.*.bn3"), or '
            "give it lcm.models.Site modules"
        )
    for name, site in choose(free, where):
        network.set_submodule(name, _drawn(factory(site.channels), name, seed))
    return network


def _drawn(module, name, seed):
    if seed is not None:
        draw_weights(module, seed, prefix=name)
    return module


def choose(free, where):
    """The pairs (name, site) that `where` means, out of all free ones. ValueError where it means none."""
    stages = sorted({site.stage for _, site in free})
    match where:
        case "every":
            return free
        case {"stages": [*wanted]} if len(where) == 1 and wanted:
            pass
        case {"last_of_stage": int(stage)} if len(where) == 1:
            wanted = [stage]
        case _:
            raise ValueError(
                f'sites {where!r} is not "every", {{"stages": [2, 3]}} or {{"last_of_stage": 2}}'
            )
    if unknown := [stage for stage in wanted if stage not in stages]:
        raise ValueError(
            f"there is no free site in stage {unknown[0]}: the stages are {', '.join(map(str, stages))}"
        )
    chosen = [(name, site) for name, site in free if site.stage in wanted]
    return chosen[-1:] if "last_of_stage" in where else chosen


def _fill_behind(network, factory, pattern, seed):
    parts, modules = pattern.split("."), dict(network.named_modules())
    del modules[""]  # the network itself
    names = [name for name in modules if len(name.split(".")) == len(parts)]
    names = [name for name in names if all(map(fnmatch.fnmatchcase, name.split("."), parts))]
    if not names:
        raise ValueError(
            f"no module of {type(network).__name__} has a name like {pattern!r}{nearest(pattern, modules)}"
        )
    widths = {name: _channels(name, modules[name]) for name in names}
    new = {
        name: _drawn(factory(width), f"{name}.attention", seed) for name, width in widths.items()
    }
    for name, module in new.items():  # all of them are made before the first layer is changed
        modules[name].attention = module
        modules[name].register_forward_hook(_attend)
    return network


def _attend(layer, args, output):
    """A forward hook; a function of a module, so that networks with it can be copied and pickled."""
    return layer.attention(output)


def _channels(name, layer):
    """C of the maps (N, C, H, W) that a layer makes."""
    if hasattr(layer, "attention"):
        raise ValueError(f"{name} has an `attention` already")
    if isinstance(layer, _BatchNorm) and not isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm3d)):
        return layer.num_features
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return layer.out_channels
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if (
        isinstance(layer, nn.LayerNorm) and type(layer).__name__ == "LayerNorm2d"
    ):  # torchvision's and timm's, of maps
        return layer.normalized_shape[0]
    raise ValueError(
        f"{name} is a {type(layer).__name__}, which does not say how many channels its maps have: name a convolution, or a norm of "
        "maps (BatchNorm2d, GroupNorm, LayerNorm2d)"
    )
