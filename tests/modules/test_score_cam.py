"""Score-CAM against the loop of its authors' code."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lcm.models import CifarDenseNet, CifarResNet, draw_weights
from lcm.score_cam import score_cam

ROOT = Path(__file__).parents[2]


class Small(nn.Module):
    """Convolution, batch norm, no ReLU: 10 maps of 6x5, of which one is a constant, one zero and one negative everywhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, stride=3)
        self.bn = nn.BatchNorm2d(10)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.bn(self.conv(x))).mean((2, 3))))


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = Small().double()
    with torch.no_grad():
        network.conv.weight[:2] = 0
        network.conv.bias[:2] = torch.tensor([0.3, 0.0])
        network.bn.weight[2], network.bn.bias[2] = 0.1, -0.5  # negative everywhere
        network.fc.weight *= 5
    return network


@pytest.fixture
def images():
    return torch.randn(3, 3, 18, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CLASSES = [2, 0, 3]


# --------------------------------------------------------------------------------- one channel at a time, as published


def rescaled(heatmap):
    low, high = heatmap.min(), heatmap.max()
    return (heatmap - low) / (high - low) if high > low else torch.zeros_like(heatmap)


def up(x, size, **how):
    return F.interpolate(x[None, None], size=size, mode="bilinear", **how)[0, 0]


def plain_official(network, x, maps, c):
    """The loop of the authors' code."""
    heatmap = torch.zeros(x.shape[1:], dtype=x.dtype)
    for channel in maps:
        saliency = up(channel, x.shape[1:])
        if channel.max() == channel.min():
            continue
        mask = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        heatmap += network((x * mask)[None]).softmax(1)[0, c] * saliency
    return rescaled(heatmap.relu())


@torch.no_grad()
def plain(network, images, maps, classes):
    network.eval()
    return torch.stack([plain_official(network, *args) for args in zip(images, maps, classes, strict=True)])


def test_equals_one_channel_at_a_time(small, images):
    with torch.no_grad():
        maps = small.eval().bn(small.conv(images))  # (3, 10, 6, 5)
    expected = plain(small, images, maps, CLASSES)
    found = score_cam(small, images, CLASSES, layer="bn")
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8)
    assert (expected.amax((1, 2)) == 1).all()  # no heatmap is trivial
    assert found.heatmap.amin() >= 0 and found.heatmap.amax() == 1
    assert torch.allclose(found.probability, small(images).softmax(1)[range(3), CLASSES], rtol=0, atol=1e-12)
    assert (found.weights[:, :2] == 0).all() and (found.weights[:, 2] != 0).all()  # constant channels are left out


@pytest.mark.parametrize("network", [CifarResNet(8, 10), CifarDenseNet(7, 6, 10)], ids=["resnet", "densenet"])
def test_equals_one_channel_at_a_time_on_cifar_networks(network):
    draw_weights(network, 0)
    network.double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pooled = []
    handle = network.pool.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0].clone()))
    with torch.no_grad():
        network(images)
    handle.remove()
    assert pooled[0].amin() == 0  # after the last ReLU
    found = score_cam(network, images)  # of the predicted class, at the layer that it finds by itself
    expected = plain(network, images, pooled[0], found.classes)
    assert torch.equal(found.classes, found.predicted) and torch.equal(found.classes, network(images).argmax(1))
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8) and expected.amax() == 1


# --------------------------------------------------------------------------------------------------------- properties


def test_the_chunk_changes_nothing_and_bounds_the_batch(small, images):
    batches = []
    small.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    runs = []
    for chunk in (1, 7, 1000):
        batches.clear()
        runs.append(score_cam(small, images, CLASSES, layer="bn", chunk=chunk))
        assert batches[0] == 3 and sum(batches[1:]) == 8 * 3  # 2 of the 10 channels are constant
        assert max(batches[1:]) == min(chunk, 24)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13)
    one_by_one = [score_cam(small, images[i : i + 1], CLASSES[i : i + 1], layer="bn") for i in range(3)]
    assert torch.allclose(torch.cat([cam.heatmap for cam in one_by_one]), runs[0].heatmap, rtol=0, atol=1e-13)


def test_no_evidence_is_zero_and_never_nan(small, images):
    with torch.no_grad():
        small.bn.bias.fill_(-50)
        negative = score_cam(small, images, CLASSES, layer="bn")
        small.conv.weight.zero_()
        constant = score_cam(small, images, CLASSES, layer="bn")
        small.bn.bias.zero_().add_(1)
        positive = score_cam(small, images, CLASSES, layer="bn")
    for cam in (negative, constant, positive):
        assert torch.equal(cam.heatmap, torch.zeros_like(cam.heatmap))
        assert cam.weights.isfinite().all() and cam.probability.isfinite().all()
    assert (negative.weights[:, 3:] != 0).all()


@pytest.mark.parametrize("value", [0.1, 3.7])
def test_a_constant_channel_does_not_become_noise(value):
    """Upsampled, a constant map is uneven by rounding; scaled to [0, 1] that would be a mask of noise."""
    channel = torch.full((8, 8), value)
    assert up(channel, (32, 32)).std() > 0
    network = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].bias[0] = value
    images = torch.randn(1, 3, 32, 32)
    assert score_cam(network, images, [0]).weights[0, 0] == 0


def test_leaves_the_network_as_it_was(small, images):
    small.train()
    small.bn.eval()
    small.fc.weight.requires_grad_(False)
    small(images).sum().backward()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    gradient, random = small.conv.weight.grad.clone(), torch.get_rng_state()
    score_cam(small, images, layer="conv")
    score_cam(small, images)
    with pytest.raises(RuntimeError):
        score_cam(small, images[:, :2], CLASSES)
    assert small.training and small.drop.training and small.conv.training and not small.bn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert torch.equal(small.conv.weight.grad, gradient)
    assert [p.requires_grad for p in small.parameters()] == [True, True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), "layer4", 512


def torchvision_densenet():
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=4, block_config=(1, 2, 2), num_init_features=8, num_classes=5), "features", 15


@pytest.mark.parametrize("make", [torchvision_resnet, torchvision_densenet])
def test_finds_the_last_stage_of_torchvisions_networks(make):
    """torchvision's DenseNet applies its last ReLU in place to what the last batch norm made."""
    network, last, channels = make()
    draw_weights(network, 0)
    network.eval()
    images = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    seen = []
    handle = network.get_submodule(last).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    handle.remove()
    cam = score_cam(network, images, [1])
    assert cam.weights.shape == (1, channels) and seen[0].shape[1] == channels
    assert seen[0].min() == 0  # rectified
    heatmap = up(torch.einsum("c,chw->hw", cam.weights[0], seen[0][0]), (40, 40)).relu()
    assert torch.allclose(cam.heatmap[0], rescaled(heatmap), atol=1e-5) and heatmap.max() > 0


def test_a_named_layer_is_its_own_output_without_what_follows_in_place():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    maps = network[0](images).detach()
    assert maps.amin() < 0
    expected = plain(network, images, maps, [0, 1])
    assert torch.allclose(score_cam(network, images, [0, 1], layer="0").heatmap, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": "cnv"}, "no layer 'cnv'; nearest: conv"),
        ({"layer": "fc"}, r"output of fc must be a map \(N, C, h, w\), not \(3, 4\)"),
        ({"classes": [1, 2]}, r"must be 3 indices in 0\.\.3, not \[1, 2\]"),
        ({"classes": [0, 1, 4]}, r"must be 3 indices in 0\.\.3"),
        ({"classes": [0, -1, 1]}, r"must be 3 indices in 0\.\.3"),
        ({"chunk": 0}, "chunk, 0, at least 1"),
        ({"images": torch.zeros(3, 18, 15)}, r"must be \(N, 3, H, W\)"),
        ({"images": torch.full((3, 3, 18, 15), torch.nan, dtype=torch.float64)}, "not finite"),
    ],
)
def test_says_what_does_not_fit(change, words, small, images):
    arguments = {"images": images, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=words):
        score_cam(small, **arguments)
