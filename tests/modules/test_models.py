"""All pairs of network and attention, and the weights they start from."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from plain import digits_top1
from strangers import Calls, Scale, images
from torch import nn

from lcm import build_network, draw_weights
from lcm.config.compose import choices
from lcm.models import CifarDenseNet, CifarResNet

ATTENTIONS = choices("attention")


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "model, overrides, size",  # a small network of each family, and the size of its images
    [
        ("resnet20", {"layers": 14}, 32),
        ("densenet40", {"layers": 10}, 32),
        ("resnet50", {}, 64),
        pytest.param("resnext50", {}, 64, marks=pytest.mark.slow),  # of the blocks of resnet50
        ("densenet121", {}, 64),
    ],
)
def test_every_pair_runs_channels_last_and_every_parameter_gets_a_finite_gradient(
    model, overrides, size, attention
):
    network = build_network(model, attention, num_classes=7, seed=0, **overrides)
    network.to(memory_format=torch.channels_last)
    converted = []

    def check(module, args, y):
        is_map = isinstance(y, torch.Tensor) and y.dim() == 4 and min(y.shape[1:]) > 1
        if is_map and not y.is_contiguous(memory_format=torch.channels_last):
            converted.append(module)

    for module in network.modules():
        module.register_forward_hook(check)
    logits = network(images(size).contiguous(memory_format=torch.channels_last))
    assert logits.shape == (2, 7) and not converted
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


# --------------------------------------------------------------------------------------------------
# Initialisation


@pytest.mark.parametrize("model", ["resnet20", "densenet40", "densenet121"])
def test_networks_of_one_seed_share_their_backbone_whatever_the_attention(model):
    backbone = build_network(model, seed=3).state_dict()
    assert not any("site" in key for key in backbone)
    for attention in ATTENTIONS:
        weights = build_network(model, attention, seed=3).state_dict()
        assert backbone.keys() <= weights.keys()
        assert all(".site." in key for key in weights.keys() - backbone.keys())
        assert all(torch.equal(weights[key], value) for key, value in backbone.items())


def test_drawing_depends_on_the_seed_and_the_name_only():
    first, second = (build_network("resnet20", "lcm2", seed=0) for _ in range(2))
    weights = first.state_dict()
    # those of recorded runs
    assert weights["fc.weight"][0, :2].tolist() == pytest.approx([0.019695997, -0.074525103])
    assert all(map(torch.equal, weights.values(), second.state_dict().values()))
    assert not torch.equal(first.fc.weight, build_network("resnet20", seed=1).fc.weight)
    one, *others = (weights[f"stage1.{name}.weight"] for name in ("1.conv1", "1.conv2", "2.conv1"))
    assert not any(torch.equal(one, other) for other in others)  # of the same shape
    # The whole network, and a part of it, named as in the whole: batch norms and their running
    # statistics begin anew, too.
    for part, name in ((second, ""), (second.stage2, "stage2")):
        with torch.no_grad():
            for tensor in part.state_dict().values():
                tensor.fill_(5)
        before = torch.get_rng_state()
        draw_weights(part, 0, prefix=name)
        assert all(map(torch.equal, weights.values(), second.state_dict().values()))
        assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone


def test_drawing_refuses_what_it_cannot_draw():
    with pytest.raises(AttributeError, match="has no attribute 'reset_parameters'"):
        draw_weights(nn.Sequential(nn.Linear(2, 2), Scale(2)), 0)
    scaled = nn.Linear(2, 2)
    scaled.alpha = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="1: `reset_parameters` leaves a parameter as it is"):
        draw_weights(nn.Sequential(nn.Linear(2, 2), scaled), 0)
    with pytest.raises(ValueError, match=r"drawn on the CPU.* 0 "):
        draw_weights(nn.Sequential(nn.Linear(2, 2, device="meta")), 0)


def kurtosis(x):
    """3 of a normal distribution, 1.8 of a uniform one."""
    x = x.double() - x.double().mean()
    return (x**4).mean() / (x**2).mean() ** 2


@pytest.mark.parametrize("model", ["resnet50", "densenet121"])
def test_without_attention_keys_and_distributions_are_torchvisions(model):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, model)(num_classes=100).state_dict()
    network = build_network(model, num_classes=100, seed=0).state_dict()
    assert list(network) == list(theirs)
    for key, ours in network.items():
        if ours.numel() > 1 and theirs[key].std() > 0:
            assert abs(ours.std() / theirs[key].std() - 1) < 6 / math.sqrt(ours.numel()), key
            assert abs(kurtosis(ours) - kurtosis(theirs[key])) < 30 / math.sqrt(ours.numel()), key
        else:
            assert torch.equal(ours, theirs[key]), key


@pytest.mark.parametrize(
    "network", [CifarResNet(20, 10), CifarDenseNet(40, 12, 10)], ids=["resnet", "densenet"]
)
def test_cifar_convolutions_start_normal_with_variance_two_over_fan_out(network):
    draw_weights(network, 0)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    for conv in convolutions:
        fan_out, n = conv.out_channels * math.prod(conv.kernel_size), conv.weight.numel()
        assert abs(conv.weight.std() * math.sqrt(fan_out / 2) - 1) < 5 / math.sqrt(n)
        assert abs(kurtosis(conv.weight) - 3) < 30 / math.sqrt(n)


@pytest.mark.parametrize("attention", ["lcm1", "cbam"])
@pytest.mark.parametrize("model", ["resnet20", "densenet40", "resnet50"])
def test_no_backbone_rule_reaches_the_attention(model, attention):
    """PyTorch's default is uniform within 1/sqrt(fan-in); LCM1 is sensitive to its initialisation
    (REPRODUCTION.md)."""
    parts = build_network(model, attention, seed=0).named_modules()
    sites = [module for name, module in parts if ".site." in name]
    layers = [module for module in sites if isinstance(module, nn.Conv2d | nn.Linear)]
    assert layers
    for layer in layers:
        assert layer.weight.abs().max() <= 1 / math.sqrt(layer.weight[0].numel())


# --------------------------------------------------------------------------------------------------
# The networks


@torch.no_grad()
def test_a_widening_block_is_torchvisions_with_a_shortcut_of_subsampling_and_zeros():
    block, x = CifarResNet(8, 10).stage2[0], torch.randn(2, 16, 8, 8)
    short = Calls(lambda _, x: torch.cat((x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)), 1))
    theirs = torchvision.models.resnet.BasicBlock(16, 32, 2, short)
    theirs.load_state_dict(block.state_dict())
    assert torch.equal(block(x), theirs(x))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("model, epochs, least", [("resnet20", 8, 97), ("densenet40", 3, 60)])
def test_learns_digits(model, epochs, least, attention):
    """Test top-1 (%); DenseNet-40 costs ten times as much an image: after three epochs it is far
    from done (chance: 10 %)."""
    assert digits_top1(build_network(model, attention, seed=0), epochs) >= least
