"""Batch norms folded into convolutions: the same function, and the network itself untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lcm.attention import LCM2
from lcm.models import CifarDenseNet, fill_sites
from lcm.models.build import build_network
from lcm.training.folding import fold


def lived_in(network, seed=0):
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


def same_function(network, size, tolerance=1e-11, x=None):
    """The folded network, after a comparison with the network itself."""
    folded, x = fold(network, size), images(size) if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=tolerance, atol=tolerance)
    return folded


def images(size, dtype=torch.float64, n=3):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=dtype)


@pytest.mark.parametrize("attention", ["none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2"])
def test_residual_networks_fold_whole(attention):
    network = lived_in(build_network("resnet20", attention, seed=0).double())
    assert norms(network) >= 19
    assert norms(same_function(network, 32)) == 0  # LCM's and Non-local's own batch norms too


def test_float32_differs_by_rounding_only():
    network = lived_in(build_network("resnet20", "lcm2", seed=0)).to(memory_format=torch.channels_last)
    folded = fold(network, 32)
    x = images(32, torch.float32, n=16)
    truth = copy.deepcopy(network).double()(x.double())
    with torch.no_grad():
        ours, plain = folded(x), network(x)
    error = (ours - truth).abs().max() / truth.abs().max()
    assert error <= 1e-5
    assert error <= 3 * (plain - truth).abs().max() / truth.abs().max() + 1e-7  # no worse than the plain one
    assert torch.equal(ours.argmax(1), plain.argmax(1))


def test_torchvision_blocks_fold_whole():
    from torchvision.models.resnet import Bottleneck, ResNet

    network = ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10, groups=4, width_per_group=2)
    network = lived_in(fill_sites(network, lambda channels: LCM2(channels, 16)).double())
    assert norms(network) == 25  # the stem's, 3 a block, 4 of the shortcuts, 5 of LCM
    assert norms(same_function(network, 64)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model, left", [("resnet50", 0), ("resnext50", 0), ("densenet121", 62)])
def test_the_224_networks(model, left):
    """Of DenseNet-121, what reads a concatenation does not fold: 58 layers, 3 transitions and the head."""
    network = lived_in(build_network(model, "lcm2", 100, seed=0).double())
    assert norms(same_function(network, 64, 1e-10)) == left


def test_the_network_itself_is_untouched():
    network = lived_in(build_network("resnet20", "lcm2", seed=0)).train()
    F.cross_entropy(network(images(32, torch.float32)), torch.tensor([0, 1, 2])).backward()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    gradients = [p.grad.clone() for p in network.parameters()]
    folded = fold(network, 32)
    assert not any(module.training for module in folded.modules())
    with torch.inference_mode():
        folded(images(32, torch.float32))
    assert all(module.training for module in network.modules())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in [*network.modules(), *folded.modules()])


@pytest.mark.parametrize("model", [("resnet20", 8), ("densenet40", 7)])
def test_under_inference_mode(model):
    network = lived_in(build_network(model[0], "lcm2", layers=model[1]).double())
    with torch.inference_mode():
        assert norms(same_function(network, 32)) < norms(network)


def test_what_cannot_be_folded_is_shared():
    network = build_network("resnet20", "none", seed=0)
    folded = fold(network, 32)
    assert folded.fc.weight is network.fc.weight
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.fill_(3.0)
        assert torch.equal(folded(images(32, torch.float32)), torch.full((3, 10), 3.0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory", ["fast", "linear"])
@pytest.mark.parametrize("attention", ["none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2"])
def test_densenets_are_evaluated_in_one_buffer(attention, memory, layout):
    network = lived_in(build_network("densenet40", attention, layers=10, memory=memory).double())
    folded = same_function(network, 32, x=images(32).contiguous(memory_format=layout))
    assert norms(folded) == 3  # those of the transitions and of the head


def test_a_dense_block_under_autocast_is_as_near_to_the_truth():
    network = lived_in(build_network("densenet40", "lcm2", layers=16))
    x = images(32, torch.float32, n=16)
    with torch.no_grad():
        truth = copy.deepcopy(network).double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = fold(network, 32)(x), network(x)
    assert ours.dtype == plain.dtype == torch.bfloat16
    assert (ours - truth).abs().mean() <= 1.5 * (plain - truth).abs().mean()


def test_a_network_without_anything_to_gain_is_returned_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten())
    assert fold(network, 8) is network


class Odd(nn.Module):
    """A stem, then something between a convolution and a batch norm that stand beside each other."""

    def __init__(self, between):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.between = between

    def forward(self, x):
        return self.between(self.conv, self.bn, x).mean((2, 3))


class Standardised(nn.Conv2d):
    """A convolution whose weight is not used as it is."""

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize(
    "between",
    [
        lambda conv, bn, x: bn(F.relu(conv(x))),  # an activation first
        lambda conv, bn, x: bn(conv(x).relu_()),
        lambda conv, bn, x: (lambda y: y + bn(y))(conv(x)),  # a second reader
        lambda conv, bn, x: bn(conv(x)) + conv(x),  # the convolution is used twice
        lambda conv, bn, x: bn(bn(conv(x))),  # the batch norm is used twice
        lambda conv, bn, x: conv(x) + bn(x[:, :1].expand(-1, 4, -1, -1))[:, :, 1:-1, 1:-1],  # beside each other
    ],
)
def test_only_what_follows_alone_is_folded(between):
    network = lived_in(Odd(between))
    assert fold(network, 8) is network


def test_other_kinds_of_convolutions_are_left_alone():
    network = lived_in(Odd(lambda conv, bn, x: bn(conv(x))))
    assert fold(network, 8) is not network
    network.conv = Standardised(3, 4, 3)
    assert fold(network, 8) is network
    network.conv = nn.Conv2d(3, 4, 3)
    network.bn = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold(network, 8) is network


def test_frozen_weights_fold_too():
    network = lived_in(Odd(lambda conv, bn, x: bn(conv(x)))).requires_grad_(False).double()
    assert norms(same_function(network, 8, 1e-12)) == 0


def test_dense_blocks_in_bf16_take_the_plain_way():
    """A buffer of bf16 maps with float32 factors takes three times as long as copies: here the block is not folded, bit for bit."""
    block = CifarDenseNet(13, 12, 10).block1.eval()
    x = torch.randn(4, 24, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.for_evaluation().eval()(x), block(x))
