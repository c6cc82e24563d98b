"""Putting attention into a network: at its sites, behind any of its layers, or in place of them.

A backbone holds a `Site`, an identity, at each place; `fill_sites` puts modules there. In a
residual network the place is the end of each residual branch, after its last batch norm and before
the addition; in a DenseNet it is the output of each dense layer, the k new maps before they are
concatenated. A stage is a group of residual blocks or a dense block, counted from 1.
"""

import copy
import sys
import warnings
from typing import NamedTuple

import torch
from torch import nn

from lcm.models.attended import Blend, attended, attentions, detached, follow
from lcm.models.places import Site as Site  # where backbones of others import it
from lcm.models.places import fits, matching, places, refuse_wrapped, sites, width
from lcm.models.probe import in_words, map_problem, maps_through
from lcm.models.weights import generators, new_module


def free_sites(network):
    """`sites`; if there are none, those that `add_sites` would give to the network."""
    # torchvision takes a second to import; only a program that has imported it can have one of its
    # networks.
    if sites(network) or "torchvision" not in sys.modules:
        return sites(network)
    from lcm.models.imagenet import possible_sites

    return possible_sites(network)


def add_sites(network):
    """Give torchvision's residual blocks and dense layers, in whatever network, their sites.

    Returns the network. Layers, their names and their weights stay, and so does what the network
    computes: a block changes its class, for one whose forward pass has the site in it. Raises
    ValueError for blocks of a class derived from torchvision's.
    """
    if not sites(network) and "torchvision" in sys.modules:
        from lcm.models.imagenet import give_sites

        give_sites(network)
    return network


def fill_sites(
    network,
    factory,
    where="every",
    seed=None,
    after=None,
    instead_of=None,
    example=None,
    blend=False,
):
    """Put new attention modules at a network's sites, behind its layers, or in place of layers.

    The network is changed in place; after an error it is as it was. A module takes mode, type and
    device of what it follows.

    Args:
        network: a network of maps (N, C, H, W). Without `after` and `instead_of` one that has sites
            or torchvision's residual blocks or dense layers, which are given them.
        factory: a callable from a channel count to a module that keeps the shape of its map.
        where: "every" site; {"stages": [2, 3]}, the sites of those stages; or {"last_of_stage": 2},
            one site.
        seed: if given, each module is made under generators keyed by this seed and its name
            (`new_module`).
        after: a pattern of dotted module names, such as "layer*.*.bn3"; no * reaches across a dot.
            A module is put behind each layer whose name fits, as its child `attention` (the next
            one: `attention2`). The names of the state dict stay: weights can be loaded before, or
            after with strict=False. `remove_attention` undoes it.
        instead_of: such a pattern; a module takes the place of each layer whose name fits.
        example: an input of the network, needed where a layer does not say how many channels its
            maps have (an activation, a block): one forward pass tells, and the modules are tried on
            maps of the sizes found.
        blend: put x + a (attention(x) - x), with one learned number a that starts at 0, so that the
            network first computes what it did. A module that starts as an identity would never
            learn so: it is placed as it is, with a warning.

    Returns:
        The network.

    Raises:
        ValueError: no free site, no such stage, no name that fits, a layer of no or of several
            widths, a module that does not keep the shape, or a network that is wrapped (DDP,
            DataParallel, FSDP), compiled or scripted.
    """
    if (where != "every") + (after is not None) + (instead_of is not None) > 1:
        raise ValueError("`where`, `after` and `instead_of` exclude each other: give one of them")
    refuse_wrapped(network, "")
    make = _Maker(network, factory, seed, blend)
    if after is not None:
        _fill_behind(network, after, make, example)
    elif instead_of is not None:
        _fill_instead(network, instead_of, make, example)
    else:
        _fill_at_sites(network, where, make)
    return network


def remove_attention(network, after=None):
    """Take out what `fill_sites(after=)` put behind the layers whose names fit, or behind all.

    Returns the network. Raises ValueError where there is nothing to take out.
    """
    found = [p for p in places(network) if attentions(p.module)]
    found = [p for p in found if after is None or fits(p.name, after)]
    if not found:
        raise ValueError(f"no attention stands behind a module with a name like {after or '*'!r}")
    for _, parent, key, module in found:
        if attentions(module):  # a module with two names is here twice
            setattr(parent, key, detached(module))
    return network


def choose(free, where):
    """The pairs (name, site) that `where` means, out of all. ValueError where it means none."""
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
        listed = ", ".join(map(str, stages))
        raise ValueError(f"there is no free site in stage {unknown[0]}: the stages are {listed}")
    chosen = [(name, site) for name, site in free if site.stage in wanted]
    return chosen[-1:] if "last_of_stage" in where else chosen


# --------------------------------------------------------------------------------------------------
# The three places: everything is made before the first is filled.


def _fill_at_sites(network, where, make):
    free = free_sites(network)
    if not free:
        raise ValueError(
            f"{type(network).__name__} has no free site: name the modules that attention is to "
            'follow (after="layer*.*.bn3"), or give it lcm.models.Site modules'
        )
    new = {}
    for name, site in choose(free, where):
        refuse_wrapped(network, name)
        block = network.get_submodule(name.rpartition(".")[0])
        new[name] = make(name, getattr(block, name.rpartition(".")[2], block), site.channels)
    add_sites(network)
    for name, module in new.items():
        network.set_submodule(name, module)


def _fill_behind(network, pattern, make, example):
    found = matching(network, pattern)
    calls = _calls(network, found, example)
    new = {}
    for name, _, _, layer in found:
        if layer in new:
            continue
        channels, shape = width(name, layer, calls)
        try:
            place, key = attended(layer)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        new[layer] = place, key, make(f"{name}.{key}", layer, channels, shape)
    for place, key, module in new.values():
        follow(place, key, module)
    for _, parent, key, layer in found:
        setattr(parent, key, new[layer][0])


def _fill_instead(network, pattern, make, example):
    found = matching(network, pattern)
    calls = _calls(network, found, example)
    new = {}
    for name, _, _, layer in found:
        if attentions(layer):
            raise ValueError(
                f"attention stands behind {name}: take it out first (lcm.remove_attention)"
            )
        if layer not in new:
            channels, shape = width(name, layer, calls, replaced=True)
            new[layer] = make(name, layer, channels, shape)
    for _, parent, key, layer in found:
        setattr(parent, key, new[layer])


def _calls(network, found, example):
    """The maps of each layer's calls, none of them without an example."""
    if example is None:
        return {}
    return maps_through(network, [place.module for place in found], example)


class _Maker(NamedTuple):
    """Makes the modules of one call of `fill_sites`."""

    network: nn.Module
    factory: object
    seed: int | None
    blend: bool

    def __call__(self, name, layer, channels, shape=None):
        """The module `name` behind `layer`, for maps of so many channels, or of `shape`."""
        with torch.device("cpu"):  # the same values wherever the network is
            module = new_module(lambda: self.factory(channels), self.seed, name)
        if not isinstance(module, nn.Module):
            raise ValueError(f"the factory gives {in_words(module)}, which is no torch.nn.Module")
        if shape and (
            problem := map_problem(lambda device: copy.deepcopy(module).to(device), (2, *shape))
        ):
            raise ValueError(f"{name}: a {type(module).__name__} does not fit: {problem}")
        if self.blend:
            module = _blended(name, module, (2, *(shape or (channels, 8, 8))))
        like = _tensor_of(self.network, layer)
        return module.to(like.device, like.dtype).train(layer.training)


def _blended(name, module, shape):
    """A `Blend` of the module, or the module where it starts as an identity."""
    kind, trial = type(module).__name__, copy.deepcopy(module).train()
    with torch.no_grad(), generators(0, "blend"), torch.device("cpu"):
        x = torch.randn(shape)
        given = x.clone()
        try:
            y = trial(given)
        except Exception as error:
            raise ValueError(f"{name}: a {kind} fails on a map {in_words(x)}: {error}") from error
    if not torch.equal(given, x):
        raise ValueError(f"{name}: a {kind} writes into its map, which a blend needs afterwards")
    if torch.equal(y, x):
        text = f"{kind} starts as an identity and is placed without blend"
        warnings.warn(f"{text}, in which it would never learn", stacklevel=5)
        return module
    return Blend(module)


def _tensor_of(network, layer):
    """A tensor of a layer's type and device: its last, else the last of what stands before."""
    found = torch.empty(0)
    for module in network.modules():
        inside = layer.modules() if module is layer else [module]
        for part in inside:
            tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
            found = next((t for t in reversed(tensors) if t.is_floating_point()), found)
        if module is layer:
            break
    return found
