"""Attention behind a layer of a dense block or a transition: the block's other forms do not pass it over."""

from functools import partial

import pytest
import torch

from lcm import build_network, fill_sites
from lcm.attention import SqueezeExcite
from lcm.training.folding import fold

PATTERNS = ("block*.*.bn", "block*.*.conv", "transition*.bn", "transition*.conv")


@pytest.mark.parametrize("after", PATTERNS)
def test_dense_blocks_and_transitions(after):
    def made(memory):
        network = build_network("densenet40", seed=0, layers=13, memory=memory).double()
        return fill_sites(network, partial(SqueezeExcite, reduction=4), after=after, seed=1).double()

    fast, linear, images = made("fast"), made("linear"), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    outputs = [network.train()(images) for network in (fast, linear)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(fast.named_parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-7, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(fold(fast.eval(), 32)(images), fast(images), rtol=1e-9, atol=1e-9)
    empty = build_network("densenet40", seed=0, layers=13).double().train()
    assert not torch.allclose(empty(images), outputs[0])
