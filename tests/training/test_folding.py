"""Batch-norm folding: the same function, and the network itself untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import digest
from tiny import ATTENTIONS
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from lcm.attention import LCM2
from lcm.models import CifarDenseNet, fill_sites
from lcm.models.build import build_network
from lcm.models.dense_block import EvaluatedBlock
from lcm.training.folding import fold


def trained(network, seed=0):
    """The network in evaluation mode with statistics and weights as training leaves them: no zeros, no ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight += 0.2 * draw(module.weight)
                module.bias += 0.2 * draw(module.bias)
                module.running_mean += 0.3 * draw(module.running_mean)
                module.running_var *= torch.exp(0.5 * draw(module.running_var))
    return network.eval()


def norms(network):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def images(size, dtype=torch.float64, n=3):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=dtype)


def same_function(network, size, tolerance=1e-11, layout=torch.contiguous_format):
    """The network folded under inference mode, after a comparison with the network itself."""
    with torch.inference_mode():
        folded, x = fold(network, size), images(size).contiguous(memory_format=layout)
        torch.testing.assert_close(folded(x), network(x), rtol=tolerance, atol=tolerance)
    return folded


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_residual_networks_fold_whole(attention):
    network = trained(build_network("resnet20", attention, seed=0).double())
    assert norms(network) >= 19
    assert norms(same_function(network, 32)) == 0  # LCM's and Non-local's own batch norms too


def test_torchvision_blocks_fold_whole():
    network = ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10, groups=4, width_per_group=2)
    network = trained(fill_sites(network, lambda channels: LCM2(channels, 16)).double())
    assert norms(network) == 25  # the stem's, 3 a block, 4 of the shortcuts, 5 of LCM
    assert norms(same_function(network, 64)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model, left", [("resnet50", 0), ("resnext50", 0), ("densenet121", 62)])
def test_the_224_networks(model, left):
    """Of DenseNet-121, what reads a concatenation does not fold: 58 layers, 3 transitions and the head."""
    assert (
        norms(same_function(trained(build_network(model, "lcm2", 100, seed=0).double()), 64, 1e-10))
        == left
    )


@pytest.mark.parametrize(
    "memory, layout", [("fast", torch.channels_last), ("linear", torch.contiguous_format)]
)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_densenets_are_evaluated_in_one_buffer(attention, memory, layout):
    network = trained(build_network("densenet40", attention, layers=10, memory=memory).double())
    folded = same_function(network, 32, layout=layout)
    assert sum(isinstance(module, EvaluatedBlock) for module in folded.modules()) == 3


@pytest.mark.parametrize(
    "model, autocast", [("resnet20", False), ("densenet40", True)], ids=["float32", "bf16"]
)
def test_it_is_as_near_to_the_truth(model, autocast):
    network = trained(
        build_network(model, "lcm2", layers={"resnet20": 20, "densenet40": 16}[model], seed=0)
    )
    x = images(32, torch.float32, n=16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours, plain = fold(network, 32)(x), network(x)
    assert ours.dtype == plain.dtype == (torch.bfloat16 if autocast else torch.float32)
    error, plain_error = (
        (logits - truth).abs().mean() / truth.abs().mean() for logits in (ours, plain)
    )
    assert error <= 1.5 * plain_error + 1e-7


def test_dense_blocks_in_bf16_take_the_plain_way():
    """A buffer of bf16 maps with float32 factors takes three times as long as copies: the block is not folded, bit for bit."""
    block = CifarDenseNet(13, 12, 10).block1.eval()
    x = torch.randn(4, 24, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.for_evaluation().eval()(x), block(x))


def test_the_network_itself_is_untouched_and_shared():
    network = trained(build_network("resnet20", "lcm2", seed=0)).train()
    F.cross_entropy(network(images(32, torch.float32)), torch.tensor([0, 1, 2])).backward()

    def state():
        gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        modes = [(module.training, len(module._forward_hooks)) for module in network.modules()]
        return digest(network.state_dict()), digest(gradients), modes

    before, folded = state(), fold(network, 32)
    with torch.inference_mode():
        folded(images(32, torch.float32))
    assert state() == before and folded.fc.weight is network.fc.weight
    assert not any(module.training or module._forward_hooks for module in folded.modules())


class Stem(nn.Module):
    """A convolution and a batch norm beside each other, and `between`, which calls them."""

    def __init__(self, between=lambda conv, bn, x: bn(conv(x))):
        super().__init__()
        self.conv, self.bn, self.between = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), between

    def forward(self, x):
        return self.between(self.conv, self.bn, x).mean((2, 3))


@pytest.mark.parametrize(
    "between",
    [
        lambda conv, bn, x: bn(F.relu(conv(x))),  # an activation first
        lambda conv, bn, x: bn(conv(x).relu_()),
        lambda conv, bn, x: (lambda y: y + bn(y))(conv(x)),  # a second reader
        lambda conv, bn, x: bn(conv(x)) + conv(x),  # the convolution is used twice
        lambda conv, bn, x: bn(bn(conv(x))),  # the batch norm is used twice
        lambda conv, bn, x: (
            conv(x) + bn(x[:, :1].expand(-1, 4, -1, -1))[:, :, 1:-1, 1:-1]
        ),  # beside each other
    ],
)
def test_a_batch_norm_with_anything_else_around_it_is_not_folded(between):
    network = trained(Stem(between))
    assert fold(network, 8) is network


class Standardised(nn.Conv2d):
    """A convolution whose weight is not used as it is."""

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


def test_other_kinds_of_convolutions_and_norms_are_not_folded():
    network = trained(Stem())
    assert fold(network, 8) is not network
    network.conv = Standardised(3, 4, 3)
    assert fold(network, 8) is network
    network.conv, network.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    assert fold(network, 8) is network


def test_frozen_weights_fold_too():
    assert norms(same_function(trained(Stem()).requires_grad_(False).double(), 8, 1e-12)) == 0
