"""From names to a network: `build_network("resnet20", "lcm2")`.

A model and an attention are files of `configs/`, or the same as mappings. A model's mapping has
`name`, `family`, `image_size`, a `_target_` and the target's arguments; an attention's has `name`
and, unless nothing is to be built, a `_target_`, its arguments and `sites` (where it stands, see
`lcm.models.fill_sites`).
"""

from collections.abc import Mapping

import torch
from hydra.utils import instantiate
from torch import nn

from lcm.complexity import count
from lcm.config.compose import load, resolve
from lcm.errors import UserError, nearest
from lcm.models.probe import check_map, in_words, maps_through, no_late_parameters, on_meta_or_cpu
from lcm.models.sites import add_sites, choose, fill_sites, free_sites
from lcm.models.weights import new_module

FACTS = {
    "name",
    "family",
    "image_size",
    "paper",
}  # keys that say something about a mapping and build nothing


def build_network(model, attention="none", num_classes=10, seed=None, **overrides):
    """Build a backbone and fill its sites.

    Args:
        model: the name of a file in configs/model, or such a mapping.
        attention: the name of a file in configs/attention, or such a mapping.
        num_classes: width of the last layer.
        seed: if given, all weights follow from it: those of the project's own networks and
            attentions from (seed, the layer's name), anything else is constructed under generators
            keyed by (seed, its name). Networks of one seed share their backbone's weights, whatever
            their attention.
        overrides: other values for keys of either mapping: `layers=56`, `reduction=8`,
            `sites={"stages": [3]}`.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        UserError: an unknown name or key, sizes that do not fit, or a pair for which the paper
            gives no sizes.
    """
    model, attention = _compose(model, attention, overrides)
    try:
        network = new_module(lambda: _partial(model)(num_classes=num_classes), seed)
        if "_target_" in attention:
            fill_sites(network, _partial(attention), attention.get("sites", "every"), seed)
    except ValueError as error:
        raise UserError(f"{model['name']} with attention {attention['name']}: {error}") from error
    return network


def site_problems(model, attention, num_classes, image_size=None):
    """Why a network or the attention at its sites will not do, a line each; [] where all is well.

    Both are resolved mappings. The network has to build and to make logits (2, num_classes) of two
    images of `image_size` (the model's own, if None); the attention has to build for each width and
    to keep shape and type of the maps at each site, in training and in evaluation. All of this runs
    on the meta device, without memory and without arithmetic, or on the CPU for what reads values.
    An attention without `_target_` leaves the network alone to be checked.
    """
    size = image_size or model["image_size"]
    images = (2, 3, size, size)
    name = f"model={model['name']}"
    try:
        maps = on_meta_or_cpu(
            lambda device: _maps_at_sites(model, num_classes, images, device), name
        )
        for shape in _shapes(maps, attention, name) if "_target_" in attention else ():
            check_map(
                lambda device, c=shape[1]: _made(attention, device, c),
                shape,
                f"attention={attention['name']} does not fit {name}",
            )
    except ValueError as error:
        return [str(error)]
    return []


def _shapes(maps, attention, name):
    """The shapes of the maps at the sites of an attention, each once."""
    try:
        if not maps:
            raise ValueError("the network has no lcm.models.Site to put it at")
        chosen = choose(list(maps), attention.get("sites", "every"))
    except ValueError as error:
        raise ValueError(f"attention.sites: {name}: {error}") from error
    return dict.fromkeys(maps[place] for place in chosen)


def _maps_at_sites(model, num_classes, images, device):
    """{place of a site: shape of its maps}. ValueError where the network makes no logits."""
    network = add_sites(_made(model, device, num_classes=num_classes))
    free = free_sites(network)
    layers = [network, *(place.module for place in free)]
    with no_late_parameters(network):
        calls = maps_through(network, layers, torch.zeros(images, device=device))
    logits = calls[network][0][1]
    if getattr(logits, "shape", None) != (images[0], num_classes):
        wanted = f"not logits ({images[0]}, {num_classes})"
        raise ValueError(f"it makes {in_words(logits)} of images {images}, {wanted}")
    called = [place for place in free if calls[place.module]]
    return {place: tuple(calls[place.module][0][1].shape) for place in called}


def _made(mapping, device, *args, **keys):
    with torch.device(device):
        return _partial(mapping)(*args, **keys)


def paper_complexity(model, attention):
    """What the paper's tables count for one of their rows, a `Complexity`: networks by name, with
    the paper's heads.

    The CIFAR rows are 10-class networks, those of Table 5 have 100 classes, except that
    DenseNet-121 is counted with a 1000-class head that runs and the parameters of a 100-class head
    that does not.
    """
    config = load("model", model)
    if config["family"] == "densenet121":
        network = build_network(model, attention, num_classes=1000)
        network.fc = nn.Linear(network.classifier.in_features, 100)  # never called
    else:
        network = build_network(
            model, attention, num_classes=10 if config["image_size"] == 32 else 100
        )
    return count(network, config["image_size"])


def _compose(model, attention, overrides):
    """Both mappings with their overrides, interpolations resolved, as plain dicts."""
    pair = {"model": model, "attention": attention}
    for group, value in pair.items():
        pair[group] = dict(value) if isinstance(value, Mapping) else load(group, value)
    known = [key for mapping in pair.values() for key in mapping if key not in FACTS | {"_target_"}]
    for key, value in overrides.items():
        if key not in known:
            names = f"{pair['model']['name']} and attention {pair['attention']['name']}"
            raise UserError(
                f"{key!r} is no key of {names}{nearest(key, known)}; the keys are: "
                f"{', '.join(known)}."
            )
        mapping = pair["model" if key in pair["model"] else "attention"]
        if isinstance(mapping[key], int) and type(value) is not type(mapping[key]):
            raise UserError(
                f"{key}={value}: must have the type of {mapping['name']}'s value, {mapping[key]}"
            )
        mapping[key] = value
    resolved = resolve(pair)
    return resolved["model"], resolved["attention"]


def _partial(mapping):
    """The target of a mapping, with its arguments."""
    arguments = {key: value for key, value in mapping.items() if key not in FACTS | {"sites"}}
    return instantiate(arguments, _partial_=True, _recursive_=False, _convert_="all")
