"""The printed counts fix stages and widths, not the place of a module within its block."""

import copy

import pytest
from torch import nn

import lcm
from lcm.attention import LCM2, SqueezeExcite

PLACES = "after bn1", "before the last norm", "behind the addition and its ReLU"


def placed(network, place, make):
    """A copy of the network with a module at this place of each residual block."""
    network = copy.deepcopy(network)
    for name, block in list(network.named_modules()):
        if not hasattr(block, "bn2"):
            continue
        channels = block.bn2.num_features
        parent, _, key = name.rpartition(".")
        if place == "after bn1":
            block.bn1 = nn.Sequential(block.bn1, make(channels))
        elif place == "before the last norm":
            block.bn2 = nn.Sequential(make(channels), block.bn2)
        else:
            network.get_submodule(parent)[int(key)] = nn.Sequential(block, make(channels))
    return network


@pytest.mark.parametrize("make", [lambda c: LCM2(c, 4), lambda c: SqueezeExcite(c, 4)])
def test_the_counts_do_not_say_where_in_a_block(make):
    plain = lcm.build_network("resnet20")
    ours = lcm.count(lcm.fill_sites(copy.deepcopy(plain), make), 32)
    assert ours.params > lcm.count(plain, 32).params
    for place in PLACES:
        there = lcm.count(placed(plain, place, make), 32)
        assert (there.params, there.gfloat, there.macs) == (ours.params, ours.gfloat, ours.macs), (
            place
        )
