"""The printed counts fix stages and widths, not the place of a module within its block."""

import pytest
import torch

import lcm
from lcm.attention import LCM2, SqueezeExcite

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize("make", [lambda c: LCM2(c, 4), lambda c: SqueezeExcite(c, 4)])
def test_the_counts_do_not_say_where_in_a_block(make):
    plain = lcm.count(lcm.build_network("resnet20"), 32)
    ours = lcm.count(lcm.fill_sites(lcm.build_network("resnet20"), make), 32)
    assert ours.params > plain.params
    # Behind the first norm, before the last norm, behind the addition and its ReLU.
    for place in ("stage*.*.bn1", "stage*.*.conv2", "stage*.*"):
        network = lcm.fill_sites(lcm.build_network("resnet20"), make, after=place, example=IMAGES)
        there = lcm.count(network, 32)
        assert (there.params, there.gfloat, there.macs) == (ours.params, ours.gfloat, ours.macs)
