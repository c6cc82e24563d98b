"""Modules behind any layer of any network: `fill_sites(network, factory, after=PATTERN)`."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

from lcm import fill_sites
from lcm.attention import SqueezeExcite
from lcm.training.folding import fold


class Small(nn.Module):
    """Two blocks of two convolutions, each with a norm, a shortcut in the second; widths 4 and 8."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, padding=1), "bn": nn.BatchNorm2d(4)})
        self.block2 = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3, padding=1), "bn": nn.GroupNorm(2, 8)})
        self.act = nn.ReLU()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = x + self.block1["bn"](self.block1["conv"](x))
        x = self.act(self.block2["bn"](self.block2["conv"](x)))
        return self.fc(self.norm(x.mean((2, 3))))


# a network, a pattern, the names that fit by hand, the widths of their maps
NETWORKS = {
    "own": (Small, "block*.bn", ["block1.bn", "block2.bn"], [4, 8]),
    "own, a convolution": (Small, "stem", ["stem"], [4]),
    "resnet18": (
        lambda: torchvision.models.resnet18(weights=None, num_classes=5),
        "layer*.*.bn2",
        [f"layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)],
        [64, 64, 128, 128, 256, 256, 512, 512],
    ),
    "convnext_tiny": (
        lambda: torchvision.models.convnext_tiny(weights=None, num_classes=5),
        "features.*.*.block.0",
        [f"features.{stage}.{block}.block.0" for stage, n in ((1, 3), (3, 3), (5, 9), (7, 3)) for block in range(n)],
        [96] * 3 + [192] * 3 + [384] * 9 + [768] * 3,
    ),
    "efficientnet_b0": (
        lambda: torchvision.models.efficientnet_b0(weights=None, num_classes=5),
        "features.*.*.block.[23].1",  # a block's last norm; block.2 of the first block, which expands nothing
        ["features.1.0.block.2.1"]
        + [
            f"features.{stage}.{block}.block.3.1"
            for stage, n in ((2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 1))
            for block in range(n)
        ],
        [16] + [24] * 2 + [40] * 2 + [80] * 3 + [112] * 3 + [192] * 4 + [320],
    ),
    "convnext_tiny, norms of maps": (  # torchvision's LayerNorm2d
        lambda: torchvision.models.convnext_tiny(weights=None, num_classes=5),
        "features.[0246].[01]",
        [f"features.{i}" for i in ("0.0", "0.1", "2.0", "2.1", "4.0", "4.1", "6.0", "6.1")],
        [96, 96, 96, 192, 192, 384, 384, 768],
    ),
    "timm resnet50": (
        lambda: timm.create_model("resnet50", pretrained=False, num_classes=5),
        "layer*.*.bn3",
        [f"layer{stage}.{block}.bn3" for stage, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for block in range(n)],
        [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3,
    ),
}
WHOLE = [name for name in NETWORKS if "," not in name]


def se(channels):
    return SqueezeExcite(channels, 4)


def network_of(name, seed=0):
    """A network as initialised, but with ones where a branch would be multiplied by (almost) nothing."""
    torch.manual_seed(seed)
    network = NETWORKS[name][0]().eval()
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale") or (key.endswith("weight") and not parameter.any()):
            nn.init.ones_(parameter)
    return network


def filled(name, factory=se, seed=0, **keys):
    return fill_sites(network_of(name, seed), factory, after=NETWORKS[name][1], **keys)


def images(size=32, count=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_stand_where_the_pattern_says_and_no_name_changes(name):
    _, pattern, expected, widths = NETWORKS[name]
    network, made = network_of(name), []
    names, weights = [key for key, _ in network.named_modules()], copy.deepcopy(network.state_dict())

    def factory(channels):
        made.append(channels)
        return se(channels)

    assert fill_sites(network, factory, after=pattern) is network
    assert made == widths
    modules = dict(network.named_modules())
    assert [key for key, module in modules.items() if type(module) is SqueezeExcite] == [
        f"{key}.attention" for key in expected
    ]
    assert [key for key in modules if key in names] == names
    new = network.state_dict()
    assert all(torch.equal(new[key], value) for key, value in weights.items())
    assert all(key.rpartition(".attention.")[0] in expected for key in new.keys() - weights.keys())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_each_module_is_given_its_layers_map_and_the_network_its_result(name):
    """With modules that multiply by a number, the network is the one whose layers are followed by that product."""

    class Scale(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(0.5, 1.5, channels))

        def forward(self, x):
            return x * self.scale[:, None, None]

    x = images()
    expected, network = network_of(name), filled(name, Scale)
    assert not torch.equal(network(x), expected(x))
    layers = dict(expected.named_modules())
    for key in NETWORKS[name][2]:  # the affine part of a norm, or a convolution, that does the product itself
        scale = network.get_parameter(f"{key}.attention.scale")
        layers[key].weight.mul_(scale.reshape(-1, *[1] * (layers[key].weight.dim() - 1)))
        if layers[key].bias is not None:
            layers[key].bias.mul_(scale)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", WHOLE)
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
    copied.load_state_dict(torch.load(file, weights_only=True))  # every key has its place
    assert torch.equal(copied(x), y)


@torch.no_grad()
@pytest.mark.parametrize("name", ["own", "resnet18"])
def test_exports(name):
    network, x = filled(name), images()
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
        ({"after": "blok*.bn"}, r"no module of Small has a name like 'blok\*\.bn'; nearest: block[12]"),
        ({"after": "block*"}, r"block1 is a ModuleDict, which does not say how many channels"),
        ({"after": "*.bn*.x"}, r"no module of Small has a name like"),
        ({"after": "act"}, r"act is a ReLU, which does not say how many channels its maps have"),
        ({"after": "fc"}, r"fc is a Linear, which does not say"),
        ({"after": "norm"}, r"norm is a LayerNorm, which does not say"),
        ({"after": "block*.bn", "where": {"stages": [1]}}, r"`where` or `after`, not both"),
        ({}, r"Small has no free site: name the modules .*after="),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_changed(keys, message):
    network = network_of("own")
    names = [name for name, _ in network.named_modules()]
    with pytest.raises(ValueError, match=message):
        fill_sites(network, se, **keys)
    assert [name for name, _ in network.named_modules()] == names


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)])
def test_layers_of_other_than_two_dimensions_are_refused(layer):
    with pytest.raises(ValueError, match=rf"0 is a {type(layer).__name__}, which does not say"):
        fill_sites(nn.Sequential(layer), se, after="0")


def test_one_misfit_among_the_fitting_changes_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(ValueError, match="1 is a ReLU"):
        fill_sites(network, se, after="*")
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match="larger than the 2 channels"):
        fill_sites(network, se, after="*")
    assert not hasattr(network[0], "attention")


def test_a_star_is_no_name_of_the_network_itself():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    fill_sites(network, se, after="*")
    assert [hasattr(layer, "attention") for layer in (network, *network)] == [False, True, True]


@torch.no_grad()
@pytest.mark.parametrize("after", ["0", "1"])
def test_what_stands_between_convolution_and_norm_is_not_folded_away(after):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten())
    nn.init.uniform_(network[1].running_mean)
    nn.init.uniform_(network[1].running_var, 0.5, 2)
    fill_sites(network.eval(), se, after=after, seed=0)
    torch.testing.assert_close(fold(network, 8)(images(8)), network(images(8)))


def test_filled_twice_is_refused():
    network = filled("own")
    with pytest.raises(ValueError, match=r"block1\.bn has an `attention` already"):
        fill_sites(network, se, after="block*.bn")
    fill_sites(network, se, after="stem")  # another place is free
    assert isinstance(network.stem.attention, SqueezeExcite)
