"""fill_sites(blend=True): a trained network starts as it was, and its new modules learn."""

import copy
import warnings

import pytest
import torch
from strangers import Scale, images
from torch import nn

from lcm import build_network, fill_sites
from lcm.config.compose import choices, load
from lcm.models.attended import Blend

ATTENTIONS = [name for name in choices("attention") if "_target_" in load("attention", name)]


# Biases that a softmax or a batch norm takes out again.
SHIFTS = ("phi.bias", "wk.bias", ".g.bias", ".w.bias", "conv.bias")


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_blend_starts_as_the_network_was_and_learns(name):
    plain = build_network("resnet20", layers=8, seed=0)
    whole = build_network("resnet20", name, layers=8, sites="every", seed=1)
    made = {16 * 2**i: getattr(whole, f"stage{i + 1}")[0].site for i in range(3)}
    with warnings.catch_warnings(record=True) as said:
        network = fill_sites(copy.deepcopy(plain), made.__getitem__, blend=True)
    said = "".join(str(warning.message) for warning in said)
    assert isinstance(network.stage1[0].site, Blend) == (name not in ("gc", "nonlocal"))
    assert (name in ("gc", "nonlocal")) == ("starts as an identity and is placed without" in said)
    x, labels = images(count=8), torch.arange(8)
    assert torch.equal(network.eval()(x), plain.eval()(x))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.train()(x), labels).backward()
        optimizer.step()
    for key, parameter in network.named_parameters():
        assert key.endswith(SHIFTS) or parameter.grad.any(), key


def test_a_blend_goes_from_the_map_to_its_attention():
    x, blend = images(), Blend(Scale(3))
    for a, expected in ((0, x), (0.5, (x + blend.attention(x)) / 2), (1, blend.attention(x))):
        nn.init.constant_(blend.a, a)
        torch.testing.assert_close(blend(x), expected)
