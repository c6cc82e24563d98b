"""Modules behind any layer of any network: `fill_sites(network, factory, after=PATTERN)`."""

import copy
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
import torchvision
from strangers import Scale, images, se
from torch import nn

from lcm import fill_sites, remove_attention
from lcm.attention import SqueezeExcite


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
    "timm resnet26": (
        partial(timm.create_model, "resnet26"),
        "layer*.*.bn3",
        [f"layer{stage}.{block}.bn3" for stage in (1, 2, 3, 4) for block in (0, 1)],
        [256, 256, 512, 512, 1024, 1024, 2048, 2048],
    ),
}


def network_of(name):
    """A network as initialised, but with ones where a branch would be multiplied by (almost)
    nothing."""
    torch.manual_seed(0)
    network = NETWORKS[name][0](num_classes=5).eval()
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale") or (key.endswith("weight") and not parameter.any()):
            nn.init.ones_(parameter)
    return network


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_stand_where_the_pattern_says_and_no_name_changes(name):
    _, pattern, expected, widths = NETWORKS[name]
    network, made = network_of(name), []
    names = [key for key, _ in network.named_modules()]
    weights = copy.deepcopy(network.state_dict())

    def factory(channels):
        made.append(channels)
        return se(channels)

    assert fill_sites(network, factory, after=pattern) is network
    assert made == widths
    modules = dict(network.named_modules())
    found = [key for key, module in modules.items() if type(module) is SqueezeExcite]
    assert found == [f"{key}.attention" for key in expected]
    assert [key for key in modules if key in names] == names
    new = network.state_dict()
    assert all(torch.equal(new[key], value) for key, value in weights.items())
    assert all(key.rpartition(".attention.")[0] in expected for key in new.keys() - weights.keys())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_each_module_is_given_its_layers_map_and_the_network_its_result(name):
    """With modules that multiply by a number, the network is the one whose layers are followed by
    that product: a norm's affine part, or a convolution, can do it itself."""
    _, pattern, names, _ = NETWORKS[name]
    x, expected, network = images(), network_of(name), network_of(name)
    fill_sites(network, Scale, after=pattern)
    assert not torch.equal(network(x), expected(x))
    for key in names:
        layer, scale = expected.get_submodule(key), network.get_parameter(f"{key}.attention.scale")
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(scale)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    network, x = fill_sites(own().eval(), se, after="block*.bn"), images(8)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"after": "blok*.bn"}, r"no module of Sequential has a name like 'blok\*\.bn'; "
                                r"nearest: block[12]"),
        ({"after": "block*"}, "block1 is a Sequential, which does not say how many "
                              "channels its maps have"),
        ({"after": "block*.bn", "where": {"stages": [1]}}, "exclude each other"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        fill_sites(own(), se, **keys)


NO_MAPS = [nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4)]
NO_MAPS += [nn.Conv1d(4, 4, 1), nn.Conv3d(4, 4, 1), nn.InstanceNorm1d(4), nn.InstanceNorm3d(4)]


@pytest.mark.parametrize("layer", NO_MAPS, ids=str)
def test_one_layer_without_maps_among_the_fitting_changes_nothing(layer):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    with pytest.raises(ValueError, match=rf"1 is a {type(layer).__name__}, which does not say"):
        fill_sites(network, se, after="*")
    assert not hasattr(network[0], "attention")


@torch.no_grad()
def test_a_second_module_follows_the_first():
    network, x = fill_sites(own(), Scale, after="block*.bn").eval(), torch.randn(1, 4, 8, 8)
    once = network.block1.bn(x)
    fill_sites(network, Scale, after="block*.bn")
    twice = network.block1.bn(x)
    assert {"block1.bn.attention.scale", "block1.bn.attention2.scale"} < set(network.state_dict())
    torch.testing.assert_close(twice, once * network.block1.bn.attention2.scale[:, None, None])
    with pytest.raises(ValueError, match="no attention stands behind a module with a name like"):
        remove_attention(network, "stem")
    assert list(remove_attention(network).state_dict()) == list(own().state_dict())
