"""Sites: the places in a network where attention can stand.

A backbone holds a `Site`, an identity, at each place; `fill_sites` puts modules there. In a residual network the place
is the end of each residual branch, after its last batch norm and before the addition; in a DenseNet it is the output of
each dense layer, the k new maps before they are concatenated. A stage is a group of residual blocks or a dense block,
counted from 1.
"""

import sys

from torch import nn

from lcm.models.weights import draw_weights


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
    """The sites of a network that are not filled, as a list of (dotted name, `Site`) in the network's order."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, Site)]


def add_sites(network):
    """Give the blocks of a torchvision ResNet, ResNeXt, Wide ResNet or DenseNet their sites; returns the network.

    The network keeps its layers, their names and their weights, and computes what it computed before. Any other network
    is left as it is.
    """
    # torchvision takes a second to import: a network of its can only come from a program that has imported it already.
    if "torchvision" in sys.modules:
        from lcm.models.imagenet import add_sites as add

        add(network)
    return network


def fill_sites(network, factory, where="every", seed=None):
    """Put a new module into the sites of a network, in place.

    Args:
        network: a network with sites, or one of torchvision's, which is given its sites first.
        factory: a callable from a channel count to a module that keeps the shape of its map.
        where: "every" site; {"stages": [2, 3]}, the sites of those stages; or {"last_of_stage": 2}, one site.
        seed: if given, the new modules' weights are drawn by `draw_weights` under this seed.

    Returns:
        The network.

    Raises:
        ValueError: the network has no free site, or `where` names none.
    """
    free = sites(network) or sites(add_sites(network))
    if not free:
        raise ValueError(
            f"{type(network).__name__} has no free site: give it lcm.models.Site modules where attention may stand"
        )
    for name, site in _choose(free, where):
        module = factory(site.channels)
        if seed is not None:
            draw_weights(module, seed, prefix=name)
        network.set_submodule(name, module)
    return network


def _choose(free, where):
    """The pairs (name, site) that `where` means, out of all free ones."""
    stages = sorted({site.stage for _, site in free})
    match where:
        case "every":
            return free
        case {"stages": [*wanted]} if len(where) == 1 and wanted:
            pass
        case {"last_of_stage": int(stage)} if len(where) == 1:
            wanted = [stage]
        case _:
            raise ValueError(f'sites {where!r} is not "every", {{"stages": [2, 3]}} or {{"last_of_stage": 2}}')
    if unknown := [stage for stage in wanted if stage not in stages]:
        raise ValueError(f"there is no free site in stage {unknown[0]}: the stages are {', '.join(map(str, stages))}")
    chosen = [(name, site) for name, site in free if site.stage in wanted]
    return chosen[-1:] if "last_of_stage" in where else chosen
