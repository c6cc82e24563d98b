"""From names to a network: `build_network("resnet20", "lcm2")`.

A model and an attention are files of `configs/`, or the same as mappings. A model's mapping has
`name`, `family`, `image_size`, a `_target_` and the target's arguments; an attention's has `name`
and, unless nothing is to be built, a `_target_`, its arguments and `sites` (where it stands, see
`lcm.models.fill_sites`).
"""

import functools
import inspect
from collections.abc import Mapping

import torch
from hydra.utils import get_object, instantiate

from lcm.config.compose import load, resolve
from lcm.errors import UserError, nearest
from lcm.models.probe import described, no_late_tensors, why
from lcm.models.sites import fill_sites
from lcm.models.weights import generators, new_module

# Keys that say something about a mapping and build nothing.
FACTS = {"name", "family", "image_size", "paper"}


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
        network = new_module(functools.partial(_partial(model), num_classes=num_classes), seed)
        if "_target_" in attention:
            fill_sites(network, _partial(attention), attention.get("sites", "every"), seed)
    except ValueError as error:
        raise UserError(f"{model['name']} with attention {attention['name']}: {error}") from error
    return network


def site_problems(model, attention, num_classes, image_size=None, trial=None):
    """Why a network or the attention at its sites will not do, a line; [] where all is well.

    Both are resolved mappings. The network has to make logits (N, num_classes), in training of two
    images of `image_size` (the model's own, if None), in evaluation of one, and the attention,
    built for each width, has to keep shape and type of the maps at each site. Without a `_target_`
    of the attention only the network is checked. `trial` is called with the filled network and with
    images, and adds gradients: what it raises is a problem, too, and so is a parameter of the
    attention that has none after several trials.
    """
    images = torch.zeros(2, 3, *2 * [image_size or model["image_size"]])
    said = f"model={model['name']}"
    try:
        with torch.no_grad(), generators(0, "check"):
            # For this check alone: a pass in training mode changes the running statistics.
            network = _partial(model)(num_classes=num_classes)
            with no_late_tensors(network):
                network.train()
                made = {2: network(images)}
                network.eval()
                made[1] = network(images[:1])  # as the last batch of a test set may have
            for n, y in made.items():
                if getattr(y, "shape", None) != (n, num_classes):
                    raise ValueError(
                        f"it makes {described(y)} of images {tuple(images[:n].shape)}, not logits "
                        f"{(n, num_classes)}"
                    )
            own = {name for name, _ in network.named_parameters()}
            # `example` has each module tried at the size of its map: one with a weight for each
            # position fits no other.
            if "_target_" in attention:
                said = f"attention={attention['name']} does not fit {said}"
                fill_sites(
                    network, _partial(attention), attention.get("sites", "every"), example=images
                )
        if trial is not None:
            new = {name: p for name, p in network.named_parameters() if name not in own}
            for attempt in range(8):  # a module may leave itself out at random (stochastic depth)
                with generators(0, f"trial {attempt}"):
                    trial(network, torch.rand(images.shape))
                idle = [name for name, p in new.items() if p.requires_grad and p.grad is None]
                if not idle:
                    break
            else:
                raise ValueError(f"{idle[0]} has no part in the loss: is its result used?")
    except (Exception, SystemExit) as error:  # a constructor may call sys.exit
        return [f"{said}: {why(error)}"]
    return []


def _compose(model, attention, overrides):
    """Both mappings with their overrides, interpolations resolved, as plain dicts."""
    pair = {"model": model, "attention": attention}
    for group, value in pair.items():
        # A copy, so that overrides do not reach the caller's mapping.
        pair[group] = dict(value) if isinstance(value, Mapping) else load(group, value)
    known = [key for mapping in pair.values() for key in mapping if key not in FACTS | {"_target_"}]
    for key, value in overrides.items():
        if key not in known:
            names = f"{pair['model']['name']} and attention {pair['attention']['name']}"
            raise UserError(
                f"{key!r} is no key of {names}{nearest(key, known)}; the keys are: "
                f"{', '.join(known)}."
            )
        pair["model" if key in pair["model"] else "attention"][key] = value
    # As one tree: the sizes of an attention are interpolations that read the model's family.
    resolved = resolve(pair)
    return resolved["model"], resolved["attention"]


def _partial(mapping):
    """The target of a mapping, with its arguments."""
    # One's own constructor may take a word of FACTS: torchvision's ViT its image_size.
    taken = inspect.signature(get_object(mapping["_target_"])).parameters
    passed_over = (FACTS | {"sites"}) - taken.keys()
    arguments = {key: value for key, value in mapping.items() if key not in passed_over}
    # Not recursive: a mapping may come from a stranger's run.json, and Hydra would call every
    # `_target_` below a key of it.
    return instantiate(arguments, _partial_=True, _recursive_=False, _convert_="all")
