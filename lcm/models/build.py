"""From names to a network: `build_network("resnet20", "lcm2")`.

A model and an attention are files of `configs/`, or the same as mappings. A model's mapping has `name`, `family`,
`image_size`, a `_target_` and the target's arguments; an attention's has `name` and, unless nothing is to be built, a
`_target_`, its arguments and `sites` (where it stands, see `lcm.models.fill_sites`).
"""

from collections.abc import Mapping

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from lcm.complexity import count
from lcm.config.compose import load
from lcm.errors import UserError, nearest
from lcm.models import draw_weights, fill_sites, sites
from lcm.models.filling import choose

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
        seed: if given, the weights of every layer are drawn under (seed, the layer's name) by `lcm.draw_weights`, so that
            networks of one seed share their backbone's weights whatever their attention.
        overrides: other values for keys of either mapping: `layers=56`, `reduction=8`, `sites={"stages": [3]}`.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        UserError: an unknown name or key, sizes that do not fit, or a pair for which the paper gives no sizes.
    """
    model, attention = _compose(model, attention, overrides)
    try:
        network = _partial(model)(num_classes=num_classes)
        if "_target_" in attention:
            fill_sites(network, _partial(attention), attention["sites"])
    except ValueError as error:
        raise UserError(f"{model['name']} with attention {attention['name']}: {error}") from error
    if seed is not None:
        draw_weights(network, seed)
    return network


def site_problems(model, attention, num_classes):
    """Why an attention cannot be built at the sites of a network, a line each; [] where it can. Both are resolved mappings.

    Network and modules are built on the meta device, without memory and without arithmetic: the network's `Site`s are the only
    source of their widths, the modules' own errors the only source of what fits.
    """
    with torch.device("meta"):
        free = sites(_partial(model)(num_classes=num_classes))
        try:
            chosen = choose(free, attention.get("sites", "every"))
        except ValueError as error:
            return [f"attention.sites: model={model['name']}: {error}"]
        for channels in sorted({site.channels for _, site in chosen}):
            try:
                _partial(attention)(channels)
            except ValueError as error:
                return [
                    f"attention={attention['name']} does not fit model={model['name']}: {error}"
                ]
    return []


def paper_complexity(model, attention):
    """What the paper's tables count for one of their rows, a `Complexity`: networks by name, with the paper's heads.

    The CIFAR rows are 10-class networks, those of Table 5 have 100 classes, except that DenseNet-121 is counted with a
    1000-class head that runs and the parameters of a 100-class head that does not.
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
                f"{key!r} is no key of {names}{nearest(key, known)}; the keys are: {', '.join(known)}."
            )
        mapping = pair["model" if key in pair["model"] else "attention"]
        if isinstance(mapping[key], int) and type(value) is not type(mapping[key]):
            raise UserError(
                f"{key}={value}: of the kind of {mapping[key]}, which {mapping['name']} has"
            )
        mapping[key] = value
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(pair), resolve=True)
    except OmegaConfBaseException as error:
        model, attention = pair["model"], pair["attention"]
        raise UserError(
            f"{model['name']} with attention {attention['name']}: {str(error).splitlines()[0]}. The attention's table "
            f"`paper` has no sizes for the family {model.get('family')!r}: add it there, or give the sizes yourself"
        ) from error
    return resolved["model"], resolved["attention"]


def _partial(mapping):
    """The target of a mapping, with its arguments."""
    arguments = {key: value for key, value in mapping.items() if key not in FACTS | {"sites"}}
    return instantiate(arguments, _partial_=True, _recursive_=False, _convert_="all")
