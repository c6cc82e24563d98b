"""Sites: the places in a network where attention can stand.

A backbone holds a `Site`, an identity, at each place; `lcm.fill_sites` puts modules there. In a residual network the place
is the end of each residual branch, after its last batch norm and before the addition; in a DenseNet it is the output of
each dense layer, the k new maps before they are concatenated. A stage is a group of residual blocks or a dense block,
counted from 1.
"""

from torch import nn


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
