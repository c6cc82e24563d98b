"""From names to a network: `build_network("resnet20", "lcm2")`.

A model and an attention are files of `configs/`, or the same as mappings. A model's mapping has `name`, `family`,
`image_size`, a `_target_` and the target's arguments; an attention's has `name` and, unless nothing is to be built, a
`_target_`, its arguments and `sites` (where it stands, see `lcm.models.fill_sites`).
"""

import difflib
from collections.abc import Mapping

from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from lcm.complexity import count
from lcm.config import check
from lcm.errors import UserError
from lcm.models import draw_weights, fill_sites

FACTS = {"name", "family", "image_size", "paper"}  # keys that say something about a mapping and build nothing


def load_config(group, name):
    """The file configs/<group>/<name>.yaml as a dict, its interpolations unresolved. UserError if there is none."""
    file = check.CONFIGS / group / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in (check.CONFIGS / group).glob("*.yaml"))
        raise UserError(f"there is no {group} {name!r}{_nearest(name, known)} The choices are: {', '.join(known)}.")
    return OmegaConf.to_container(OmegaConf.load(file))


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


def paper_complexity(model, attention):
    """What the paper's tables count for one of their rows, a `Complexity`: networks by name, with the paper's heads.

    The CIFAR rows are 10-class networks, those of Table 5 have 100 classes, except that DenseNet-121 is counted with a
    1000-class head that runs and the parameters of a 100-class head that does not.
    """
    config = load_config("model", model)
    if config["family"] == "densenet121":
        network = build_network(model, attention, num_classes=1000)
        network.fc = nn.Linear(network.classifier.in_features, 100)  # never called
    else:
        network = build_network(model, attention, num_classes=10 if config["image_size"] == 32 else 100)
    return count(network, config["image_size"])


def _compose(model, attention, overrides):
    """Both mappings with their overrides, interpolations resolved, as plain dicts."""
    pair = {"model": model, "attention": attention}
    for group, value in pair.items():
        pair[group] = dict(value) if isinstance(value, Mapping) else load_config(group, value)
    known = [key for mapping in pair.values() for key in mapping if key not in FACTS | {"_target_"}]
    for key, value in overrides.items():
        if key not in known:
            names = f"{pair['model']['name']} and attention {pair['attention']['name']}"
            raise UserError(f"{key!r} is no key of {names}{_nearest(key, known)} The keys are: {', '.join(known)}.")
        mapping = pair["model" if key in pair["model"] else "attention"]
        if isinstance(mapping[key], int) and type(value) is not type(mapping[key]):
            raise UserError(f"{key}={value}: of the kind of {mapping[key]}, which {mapping['name']} has")
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
    return instantiate(arguments, _partial_=True, _convert_="all")


def _nearest(name, known):
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."
