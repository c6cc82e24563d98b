"""Putting attention into a network: at its sites, behind any of its layers, or in place of them.

A backbone holds a `Site`, an identity, at each place; `fill_sites` puts modules there. In a
residual network the place is the end of each residual branch, after its last batch norm and before
the addition; in a DenseNet it is the output of each dense layer, the k new maps before they are
concatenated. A stage is a group of residual blocks or a dense block, counted from 1.
"""

import functools
import warnings

import torch

from lcm.copies import twin
from lcm.models.attended import Attended, Blend
from lcm.models.places import map_shape, matching, places, refuse_listed, refuse_wrapped, sites
from lcm.models.probe import check_map, maps_through
from lcm.models.weights import generators, new_module


def add_sites(network):
    """Give torchvision's residual blocks and dense layers, in whatever network, their sites.

    Returns the network. Layers, their names and their weights stay, and so does what the network
    computes: a block changes its class, for one whose forward pass has the site in it. Raises
    ValueError for blocks of a class derived from torchvision's.
    """
    if not sites(network):
        from lcm.models.imagenet import give_sites  # torchvision takes a second to import

        give_sites(network)
    return network


# What can fail comes first: the names, the shapes of the maps (a copy of the network runs), a
# trial of the factory at each shape, the new modules. Only the last loop replaces layers.
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

    Returns the network, changed in place; after an error it computes what it did. A module takes
    mode, type and device of what it follows.

    Args:
        network: a network of maps (N, C, H, W). Without `after` and `instead_of` one that has sites
            or torchvision's residual blocks or dense layers, which are given them.
        factory: a callable from a channel count to a module that keeps the shape of its map.
        where: "every" free site; {"stages": [2, 3]}; or {"last_of_stage": 2}, the last free one.
        seed: if given, each module is made under generators keyed by this seed and its name.
        after: a pattern of dotted module names, such as "layer*.*.bn3"; no * reaches across a dot.
            A module is put behind each layer whose name fits, as its child `attention`. The names
            of the state dict stay: weights can be loaded before, or after with strict=False.
            `remove_attention` undoes it.
        instead_of: such a pattern; a module takes the place of each layer whose name fits.
        example: an input of the network, needed where a layer does not say how many channels its
            maps have (an activation, a block). With it the factory is first tried at each shape
            of a map; without, a module that returns another shape may be broadcast unnoticed.
        blend: put x + a (attention(x) - x), a learned from 0: the network first computes what it
            did (with `instead_of`: without the layer). An identity is put as is, with a warning.

    Raises:
        ValueError: no such site or name, no width, an unfit module, a wrapped or compiled network.
    """
    if (where != "every") + (after is not None) + (instead_of is not None) > 1:
        raise ValueError("`where`, `after` and `instead_of` exclude each other: give one of them")
    if isinstance(factory, torch.nn.Module):
        raise ValueError(f"factory={factory!r:.60} is a module: give what makes one, as LCM2")
    refuse_wrapped(network)
    behind = after is not None
    pattern = after if behind else instead_of
    found = chosen(network, where) if pattern is None else matching(network, pattern)
    refuse_listed(network, {place.module for place in found})
    calls = maps_through(network, [place.module for place in found], example)
    shapes = {p.module: map_shape(p, calls.get(p.module), keeps=not behind) for p in found}
    for shape in dict.fromkeys(shape for shape in shapes.values() if shape[1:]):  # (C, H, W)
        check_map(factory, shape)
    new = {}
    for place in found:
        layer = place.module
        if layer not in new:  # a layer may have two names
            module = _module(factory, seed, blend, _name(place, behind), shapes[layer])
            _follow(module, place, network)
            new[layer] = Attended(layer, module) if behind else module
    # Under all of its names: the network may call a layer by one that does not fit the pattern.
    for _, parent, key, layer in [*places(network)]:
        if layer in new:
            setattr(parent, key, new[layer])
    return network


def remove_attention(network):
    """Take out all that `fill_sites(after=)` put behind layers.

    Returns the network. Raises ValueError for a network that is wrapped, compiled or scripted.
    """
    refuse_wrapped(network)
    found = [place for place in places(network) if isinstance(place.module, Attended)]
    for _, parent, key, module in found:
        setattr(parent, key, module.layer)
    return network


def chosen(network, where):
    """The places of the free sites that `where` means. ValueError where it means none."""
    free = sites(add_sites(network))
    if not free:
        raise ValueError(
            f"{type(network).__name__} has no free site: name the modules that attention is to "
            'follow (after="layer*.*.bn3"), or give it lcm.models.Site modules'
        )
    stages = sorted({place.module.stage for place in free})
    # A mapping pattern also fits a mapping with further keys: hence len(where) == 1.
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
    if unknown := [stage for stage in wanted if stage is True or stage not in stages]:
        listed = ", ".join(map(str, stages))
        raise ValueError(f"there is no free site in stage {unknown[0]}: the stages are {listed}")
    if wanted != sorted(set(wanted)):  # the same sites would give a run another hash
        raise ValueError(f"the stages {wanted} have to rise: {sorted(set(wanted))}")
    found = [place for place in free if place.module.stage in wanted]
    return found[-1:] if "last_of_stage" in where else found


def _name(place, behind):
    """The dotted name of the new module behind a layer, or in its place. ValueError where attention
    stands there already, or where names of the state dict would collide."""
    if isinstance(place.module, Attended):
        raise ValueError(
            f"attention stands behind {place.name}: take it out first (lcm.remove_attention)"
        )
    if not behind:
        return place.name
    # The state dict gets `attention.` and drops `layer.`: keys of such a child would collide.
    for name in ("layer", "attention"):
        if hasattr(place.module, name):
            raise ValueError(f"{place.name} has a child `{name}`, a name that is needed here")
    return f"{place.name}.attention"


def _module(factory, seed, blend, name, shape):
    """The module `name`, for maps (C, H, W), of which C alone may be known; on the CPU."""
    with torch.device("cpu"):  # the same values wherever the network is
        # A partial, not a lambda: `new_module` looks in it for an attention of this project.
        module = new_module(functools.partial(factory, shape[0]), seed, name)
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"{name}: the factory makes a {type(module).__name__}, no module")
        if not blend:
            return module
        check_map(lambda channels: module, shape if shape[1:] else (shape[0], 8, 8))
        # An identity is found with random values, because many modules keep a map of zeros, and
        # on a twin, because a pass in training mode changes running statistics.
        with torch.no_grad(), generators(0, "blend"):
            x = torch.randn(2, shape[0], *(shape[1:] or (8, 8)))
            given = x.clone()
            copied = twin(module)
            copied.train()
            y = copied(given)
    kind = type(module).__name__
    if not torch.equal(given, x):
        raise ValueError(f"{name}: a {kind} writes into its map, which a blend needs afterwards")
    if not torch.equal(y, x):
        return Blend(module)
    warnings.warn(
        f"{kind} starts as an identity and is placed without blend, in which it would never learn",
        stacklevel=3,  # the caller of `fill_sites`
    )
    return module


def _follow(module, place, network):
    """Give a module mode, device and, but for complex and whole numbers, the type of what it
    follows."""
    module.train(place.module.training)
    like = _tensor_of(place, network)
    # Module.to(dtype) would cast complex parameters, too, and drop their imaginary parts.
    module._apply(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype))


def _tensor_of(place, network):
    """A tensor of the type and device that a layer's maps have: its last parameter, its last
    buffer, or one of the module or the network around it."""
    # Lazily: a list of all tensors of the network, for each of its sites, would take seconds.
    around = (place.module, place.parent, network)
    lists = ([*module.buffers(), *module.parameters()] for module in around)
    nearest = (tensor for tensors in lists for tensor in reversed(tensors))
    return next((t for t in nearest if t.is_floating_point()), torch.empty(0))
