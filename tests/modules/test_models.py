"""All pairs of network and attention, and the weights they start from."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lcm import build_network, draw_weights
from lcm.config.options import choices, load
from lcm.models import CifarDenseNet, CifarResNet

MODELS, ATTENTIONS = choices("model"), choices("attention")
TORCHVISION = {name for name in MODELS if load("model", name)["image_size"] > 32}  # of large images


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_pair_runs_and_every_parameter_gets_a_finite_gradient(model, attention):
    network = build_network(model, attention, num_classes=7, seed=0).to(memory_format=torch.channels_last)
    size = 64 if model in TORCHVISION else 32
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    logits = network(images.contiguous(memory_format=torch.channels_last))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# ------------------------------------------------------------------------------------------------------------------
# First weights


@pytest.mark.parametrize("model", ["resnet20", "densenet40", "densenet121"])
def test_networks_of_one_seed_share_their_backbone_whatever_the_attention(model):
    backbone = build_network(model, seed=3).state_dict()
    assert not any("site" in key for key in backbone)
    for attention in ATTENTIONS:
        weights = build_network(model, attention, seed=3).state_dict()
        assert backbone.keys() <= weights.keys()
        assert all(".site." in key for key in weights.keys() - backbone.keys())
        assert all(torch.equal(weights[key], value) for key, value in backbone.items())


@pytest.mark.parametrize(("model", "name"), [("resnet50", "resnet50"), ("densenet121", "densenet121")])
def test_without_attention_the_keys_are_torchvisions(model, name):
    theirs = getattr(torchvision.models, name)(num_classes=100).state_dict()
    ours = build_network(model, num_classes=100).state_dict()
    assert list(ours) == list(theirs)


def test_drawing_depends_on_the_seed_and_the_name_only():
    first, second = build_network("resnet20", "lcm2", seed=0), build_network("resnet20", "lcm2", seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, build_network("resnet20", seed=1).fc.weight)
    same_shape = [first.stage1[1].conv1.weight, first.stage1[1].conv2.weight, first.stage1[2].conv1.weight]
    assert not torch.equal(same_shape[0], same_shape[1])
    assert not torch.equal(same_shape[0], same_shape[2])
    with torch.no_grad():
        for tensor in second.state_dict().values():
            tensor.fill_(5)
    draw_weights(second, 0)  # batch norms and their running statistics begin anew too
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    draw_weights(first.stage2, 0, prefix="stage2")  # a part of a network, named as in the whole
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_drawing_leaves_the_global_generator_alone():
    network = CifarResNet(8, 10)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draw_weights(network, 0)
    assert torch.equal(torch.rand(3), expected)


def test_drawing_refuses_what_it_cannot_draw():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(TypeError, match=r"1: a Bare has parameters but no reset_parameters"):
        draw_weights(nn.Sequential(nn.Linear(2, 2), Bare()), 0)
    with pytest.raises(ValueError, match=r"drawn on the CPU.* 0 "):
        draw_weights(nn.Sequential(nn.Linear(2, 2, device="meta")), 0)


@pytest.mark.parametrize(("model", "name"), [("resnet50", "resnet50"), ("densenet121", "densenet121")])
def test_torchvisions_networks_start_with_torchvisions_distributions(model, name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=100).state_dict()
    for key, ours in build_network(model, num_classes=100, seed=0).state_dict().items():
        if ours.numel() > 1 and theirs[key].std() > 0:
            assert abs(ours.std() / theirs[key].std() - 1) < 6 / math.sqrt(ours.numel()), key
            # a normal distribution has the kurtosis 3, a uniform one 1.8
            assert abs(kurtosis(ours) - kurtosis(theirs[key])) < 30 / math.sqrt(ours.numel()), key
        else:
            assert torch.equal(ours, theirs[key]), key


def kurtosis(x):
    x = x.double() - x.double().mean()
    return (x**4).mean() / (x**2).mean() ** 2


@pytest.mark.parametrize("network", [CifarResNet(20, 10), CifarDenseNet(40, 12, 10)], ids=["resnet", "densenet"])
def test_cifar_convolutions_start_normal_with_variance_two_over_fan_out(network):
    draw_weights(network, 0)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    for conv in convolutions:
        fan_out = conv.out_channels * math.prod(conv.kernel_size)
        n = conv.weight.numel()
        assert abs(conv.weight.std() * math.sqrt(fan_out / 2) - 1) < 5 / math.sqrt(n)
        assert abs(kurtosis(conv.weight) - 3) < 30 / math.sqrt(n)


@pytest.mark.parametrize("model", ["resnet20", "densenet40", "resnet50", "densenet121"])
def test_no_backbone_rule_reaches_the_attention(model):
    """PyTorch's default is uniform within 1/sqrt(fan-in); He's normal weights of LCM1 hardly train (see REPRODUCTION.md)."""
    for attention in ("lcm1", "cbam"):
        network = build_network(model, attention, seed=0)
        layers = [m for name, m in network.named_modules() if ".site." in name and isinstance(m, nn.Conv2d | nn.Linear)]
        assert layers
        for layer in layers:
            assert layer.weight.abs().max() <= 1 / math.sqrt(layer.weight[0].numel())
    (last,) = (m for name, m in build_network(model, "nonlocal", seed=0).named_modules() if name.endswith(".site.bn"))
    assert not last.weight.any()
    lasts = [m for name, m in build_network(model, "gc", seed=0).named_modules() if name.endswith(".site.wv2")]
    assert lasts
    assert not any(last.weight.any() or last.bias.any() for last in lasts)


# ------------------------------------------------------------------------------------------------------------------
# The networks


@pytest.mark.parametrize("layers", [7, 9, 21, 2, 0])
def test_a_resnet_has_6n_plus_2_layers(layers):
    with pytest.raises(ValueError, match=rf"6n \+ 2 layers .* not {layers}"):
        CifarResNet(layers, 10)


@pytest.mark.parametrize("layers", [4, 41, 102, 0])
def test_a_densenet_has_3n_plus_4_layers(layers):
    with pytest.raises(ValueError, match=rf"3n \+ 4 layers .* not {layers}"):
        CifarDenseNet(layers, 12, 10)


def test_an_unknown_memory_is_refused():
    with pytest.raises(ValueError, match="memory='little'"):
        CifarDenseNet(40, 12, 10, memory="little")


@pytest.mark.parametrize(("layers", "parameters"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_sizes_are_those_of_he_et_al(layers, parameters):
    """Their Table 6, in millions."""
    assert abs(sum(p.numel() for p in CifarResNet(layers, 10).parameters()) / 1e6 - parameters) < 0.05


@torch.no_grad()
def test_the_shortcut_of_a_widening_block_is_subsampling_and_zeros():
    block = CifarResNet(8, 10).stage2[0]
    nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


@torch.no_grad()
@pytest.mark.parametrize("model", ["resnet20", "densenet40", "resnet50", "densenet121"])
def test_maps_stay_channels_last(model):
    network = build_network(model, "lcm2", seed=0).eval().to(memory_format=torch.channels_last)
    size = 64 if model in TORCHVISION else 32
    wrong = []

    def look(name, y):
        if isinstance(y, torch.Tensor) and y.dim() == 4 and not y.is_contiguous(memory_format=torch.channels_last):
            wrong.append(name)

    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, args, y, name=name: look(name, y))
    network(torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last))
    assert not wrong


@torch.no_grad()
@pytest.mark.parametrize("model", ["resnet20", "densenet40", "resnet50"])
def test_layouts_agree(model):
    network = build_network(model, "lcm1", seed=0).double().eval()
    size = 64 if model in TORCHVISION else 32
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    y = copy.deepcopy(network).to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(network(x), y, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "attention"),
    [
        ("resnet20", "lcm2"),
        ("densenet40", "gc"),
        ("resnet50", "lcm1"),
        ("densenet121", "cbam"),
        ("resnext50", "nonlocal"),
    ],
)
def test_a_whole_network_compiles_as_one_graph(model, attention):
    network = build_network(model, attention, seed=0).double()
    size = 64 if model in TORCHVISION else 32
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    y = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(y, network(x), rtol=1e-10, atol=1e-10)
    y.sum().backward()
