"""Modules behind any layer of any network: `fill_sites(network, factory, after=PATTERN)`."""

import copy
import io
import pickle
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from lcm import build_network, fill_sites, remove_attention
from lcm.attention import SqueezeExcite

se = partial(SqueezeExcite, reduction=4)


def own(num_classes=5):
    """Two blocks, each with a convolution and a norm; widths 4 and 8."""
    block1, block2 = (
        nn.Sequential(OrderedDict(conv=nn.Conv2d(4, width, 3, padding=1), bn=norm, act=nn.ReLU()))
        for width, norm in ((4, nn.BatchNorm2d(4)), (8, nn.GroupNorm(2, 8)))
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return nn.Sequential(
        OrderedDict(stem=nn.Conv2d(3, 4, 3, padding=1), block1=block1, block2=block2, head=head)
    )


# a network, a pattern, the names that fit by hand, the widths of their maps
NETWORKS = {
    "own": (own, "block*.bn", ["block1.bn", "block2.bn"], [4, 8]),
    "own, a convolution": (own, "stem", ["stem"], [4]),
    "resnet18": (
        torchvision.models.resnet18,
        "layer*.*.bn2",
        [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)],
        [64, 64, 128, 128, 256, 256, 512, 512],
    ),
    "convnext_tiny": (  # the LayerNorm2d of torchvision
        torchvision.models.convnext_tiny,
        "features.[0246].[01]",
        [f"features.{i}" for i in ("0.0", "0.1", "2.0", "2.1", "4.0", "4.1", "6.0", "6.1")],
        [96, 96, 96, 192, 192, 384, 384, 768],
    ),
    "timm resnet50": (
        partial(timm.create_model, "resnet50", pretrained=False),
        "layer*.*.bn3",
        [
            f"layer{stage}.{block}.bn3"
            for stage, n in ((1, 3), (2, 4), (3, 6), (4, 3))
            for block in range(n)
        ],
        [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3,
    ),
}


def network_of(name, seed=0):
    """A network as initialised, but with ones where a branch would be multiplied by (almost)
    nothing."""
    torch.manual_seed(seed)
    network = NETWORKS[name][0](num_classes=5).eval()
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale") or (key.endswith("weight") and not parameter.any()):
            nn.init.ones_(parameter)
    return network


def filled(name, factory=se):
    return fill_sites(network_of(name), factory, after=NETWORKS[name][1])


def images(size=32, count=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_stand_where_the_pattern_says_and_no_name_changes(name):
    _, pattern, expected, widths = NETWORKS[name]
    network, made = network_of(name), []
    names, weights = (
        [key for key, _ in network.named_modules()],
        copy.deepcopy(network.state_dict()),
    )
    assert (
        fill_sites(network, lambda channels: made.append(channels) or se(channels), after=pattern)
        is network
    )
    assert made == widths
    modules = dict(network.named_modules())
    found = [key for key, module in modules.items() if type(module) is SqueezeExcite]
    assert found == [f"{key}.attention" for key in expected]
    assert [key for key in modules if key in names] == names
    new = network.state_dict()
    assert all(torch.equal(new[key], value) for key, value in weights.items())
    assert all(key.rpartition(".attention.")[0] in expected for key in new.keys() - weights.keys())


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x):
        return x * self.scale[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_each_module_is_given_its_layers_map_and_the_network_its_result(name):
    """With modules that multiply by a number, the network is the one whose layers are followed by
    that product."""
    x, expected, network = images(), network_of(name), filled(name, Scale)
    assert not torch.equal(network(x), expected(x))
    for key in NETWORKS[name][
        2
    ]:  # the affine part of a norm, or a convolution, that does the product itself
        layer, scale = expected.get_submodule(key), network.get_parameter(f"{key}.attention.scale")
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(scale)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["own", "resnet18"])
def test_weights_are_loaded_before_or_after_copied_and_pickled(name):
    pattern, x = NETWORKS[name][1], images()
    pretrained = network_of(name, seed=5)
    weights = pretrained.state_dict()
    before = fill_sites(pretrained, se, after=pattern, seed=3)
    after = fill_sites(network_of(name, seed=2), se, after=pattern, seed=3)
    missing, unexpected = after.load_state_dict(weights, strict=False)
    assert missing and not unexpected
    assert all(".attention." in key for key in missing)
    y = before(x)
    assert torch.equal(after(x), y)
    copied = copy.deepcopy(before)
    assert torch.equal(pickle.loads(pickle.dumps(before))(x), y)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    for parameter in copied.parameters():
        parameter.zero_()
    assert torch.equal(before(x), y)  # nothing is shared
    copied.load_state_dict(torch.load(file, weights_only=True))  # every key is in its place
    assert torch.equal(copied(x), y)


@torch.no_grad()
def test_exports():
    network, x = filled("own"), images()
    exported = torch.export.export(network, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), network(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    network, x = filled("own"), images(8)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"after": "blok*.bn"},
            r"no module of Sequential has a name like 'blok\*\.bn'; nearest: block[12]",
        ),
        (
            {"after": "block*"},
            r"block1 is a Sequential, which does not say how many channels its maps have",
        ),
        ({"after": "block*.bn", "where": {"stages": [1]}}, r"exclude each other"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        fill_sites(own(), se, **keys)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        *(kind(4, 4, 1) for kind in (nn.Conv1d, nn.Conv3d)),
    ]
    + [nn.BatchNorm1d(4), nn.BatchNorm3d(4)],
    ids=str,
)
def test_one_layer_without_maps_among_the_fitting_changes_nothing(layer):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    with pytest.raises(ValueError, match=rf"1 is a {type(layer).__name__}, which does not say"):
        fill_sites(network, se, after="*")
    assert not hasattr(network[0], "attention")


def test_one_module_that_does_not_fit_changes_nothing():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match="larger than the 2 channels"):
        fill_sites(network, se, after="*")
    assert not hasattr(network[0], "attention")


def test_a_star_is_no_name_of_the_network_itself():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    fill_sites(network, se, after="*")
    assert [hasattr(layer, "attention") for layer in (network, *network)] == [False, True, True]


def test_a_second_module_follows_the_first():
    network, x = filled("own", Scale), images()
    with torch.no_grad():
        once = network.block1.bn(x.repeat(1, 2, 1, 1)[:, :4])
        fill_sites(network, Scale, after="block*.bn")
        twice = network.block1.bn(x.repeat(1, 2, 1, 1)[:, :4])
    assert {"block1.bn.attention.scale", "block1.bn.attention2.scale"} < set(network.state_dict())
    torch.testing.assert_close(twice, once * torch.linspace(0.5, 1.5, 4)[:, None, None])
    with pytest.raises(ValueError, match="no attention stands behind a module with a name like"):
        remove_attention(network, "stem")
    assert list(remove_attention(network).state_dict()) == list(own().state_dict())


@pytest.mark.parametrize("after", ["block*.*.bn", "block*.*.conv", "block*.*", "transition*.bn"])
def test_the_other_forms_of_dense_blocks_and_transitions_do_not_pass_it_over(after):
    def made(memory):
        network = build_network("densenet40", seed=0, layers=13, memory=memory).double()
        return fill_sites(network, se, after=after, seed=1, example=images(count=2).double())

    fast, linear, x = made("fast"), made("linear"), images(count=4).double()
    outputs = [network.train()(x) for network in (fast, linear)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(fast.named_parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-7, atol=1e-9, msg=name)
    assert not torch.allclose(
        build_network("densenet40", seed=0, layers=13).double()(x), outputs[0]
    )
