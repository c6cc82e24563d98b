"""Modules behind, or in place of, any layers of any network."""

import copy
import random
import warnings
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from plain import digest
from strangers import Calls, Scale, images, se, state
from torch import nn

from lcm import build_network, fill_sites, remove_attention
from lcm.attention import SqueezeExcite
from lcm.config.compose import choices, load
from lcm.models.attended import Blend

tv = torchvision.models


TWO_OF_FOUR = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
NETWORKS = {  # a network, a pattern, the names that fit by hand, the widths of their maps
    "group norms": (partial(tv.resnet18, norm_layer=partial(nn.GroupNorm, 2)), "layer[12].0.bn1",
        ["layer1.0.bn1", "layer2.0.bn1"], [64, 128]),
    "a convolution": (tv.squeezenet1_1, "features.0", ["features.0"], [64]),
    "resnet18": (tv.resnet18, "layer*.*.bn2", [f"{block}.bn2" for block in TWO_OF_FOUR],
        [64, 64, 128, 128, 256, 256, 512, 512]),
    "timm resnet26": (partial(timm.create_model, "resnet26", zero_init_last=False), "layer*.*.bn3",
        [f"{block}.bn3" for block in TWO_OF_FOUR],
        [256, 256, 512, 512, 1024, 1024, 2048, 2048]),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_modules_stand_where_the_pattern_says_and_follow_their_layers(name):
    """With modules that multiply by a number, the network is the one whose layers are followed by
    that product: a norm's affine part, or a convolution, can do it itself."""
    make, pattern, names, widths = NETWORKS[name]
    torch.manual_seed(0)
    x, plain = images(), make(num_classes=5).eval()
    network, expected = copy.deepcopy(plain), copy.deepcopy(plain)
    assert fill_sites(network, Scale, after=pattern) is network
    modules = dict(network.named_modules())
    found = {key: len(module.scale) for key, module in modules.items() if type(module) is Scale}
    assert found == {f"{key}.attention": c for key, c in zip(names, widths, strict=True)}
    old = [key for key, _ in plain.named_modules()]
    assert [key for key in modules if key in old] == old
    for key in names:
        layer, scale = expected.get_submodule(key), network.get_parameter(f"{key}.attention.scale")
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(scale)
    assert not torch.equal(network(x), plain(x))
    torch.testing.assert_close(network(x), expected(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_layer_of_two_names_has_its_attention_under_both():
    """The forward pass may use the one that the pattern does not name."""
    norm = nn.BatchNorm2d(3)
    plain = Calls(lambda m, x: m.features(x), features=nn.Sequential(norm), norm=norm).eval()
    network, x = fill_sites(copy.deepcopy(plain), Scale, after="norm"), images(8)
    assert torch.equal(network(x), network.norm.attention(plain(x)))
    assert torch.equal(remove_attention(network)(x), plain(x))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network, x = fill_sites(plain.eval(), se, after="[13]"), images(8)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Widths

KNOWN = {  # layers that say themselves how wide their maps are
    "synchronised": nn.SyncBatchNorm(6),
    "instance": nn.InstanceNorm2d(6),
    "group, timm": timm.layers.GroupNormAct(6, 2),
    "with activation": timm.layers.BatchNormAct2d(6),
    "lazy convolution": nn.LazyConv2d(6, 1),
    "transposed": nn.ConvTranspose2d(6, 6, 1),
    "frozen": torchvision.ops.FrozenBatchNorm2d(6),
    "layer, torchvision": tv.convnext.LayerNorm2d(6),
    "RMS, timm": timm.layers.RmsNorm2d(6),
    "weights as maps": type("MapNorm2d", (Calls,), {})(
        lambda m, x: m.weight * x, weight=nn.Parameter(torch.ones(1, 6, 1, 1))
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_width_is_the_layers_own(name):
    network = nn.Sequential(nn.Conv2d(3, 6, 1), copy.deepcopy(KNOWN[name])).eval()
    fill_sites(network, se, after="1")
    assert network[1].attention.w1.in_features == 6 and network(images()).shape == (2, 6, 32, 32)


class Odd(nn.Module):
    """Counts its calls in a buffer, also in evaluation, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * (torch.rand(1) + np.random.rand() + random.random())


def test_an_example_leaves_no_trace():
    norm = nn.BatchNorm2d(6).eval()
    network = nn.Sequential(nn.Conv2d(3, 6, 1), norm, Odd(), nn.Dropout(), nn.Flatten())
    plain = copy.deepcopy(network)
    _, _, generators = state(network)
    fill_sites(network, se, after="[23]", seed=0, example=images())
    assert state(network)[2] == generators
    assert state(remove_attention(network)) == state(plain)


# --------------------------------------------------------------------------------------------------
# What new modules take from the network, and what the network keeps

WHERE = [{}, {"after": "layer*.*.bn2"}, {"instead_of": "layer*.*.bn2"}]


@pytest.mark.parametrize("there", [{"dtype": torch.bfloat16}, {"device": "meta"}], ids=str)
@pytest.mark.parametrize("where", [*WHERE, {"after": "layer*.*"}], ids=str)
def test_new_modules_take_mode_type_and_device(where, there):
    network, example = tv.resnet18().to(**there).eval(), images(64).to(**there)
    network.layer2.train()
    fill_sites(network, nn.BatchNorm2d, **where, example=example, blend=True)
    found = {(t.device, t.dtype) for t in network.state_dict().values() if t.is_floating_point()}
    assert found == {(example.device, example.dtype)}
    assert {m.training for name, m in network.named_modules() if "layer2" in name} == {True}
    assert {m.training for name, m in network.named_modules() if "layer1" in name} == {False}
    assert network.eval()(example).shape == (2, 1000)


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_an_error_in_the_middle_changes_nothing(where):
    network, made = tv.resnet18(), []

    def failing(channels):
        made.append(channels)
        if len(made) == 4:
            raise ZeroDivisionError
        return se(channels)

    before = state(network)
    with pytest.raises(ZeroDivisionError):
        fill_sites(network, failing, seed=1, **where)
    assert len(made) == 4 and state(network)[1:] == before[1:]
    fill_sites(network, se, seed=1, **where)
    assert sum(type(module) is SqueezeExcite for module in network.modules()) == 8


def test_a_module_keeps_what_its_factory_set():
    """Also one of this project, with a seed, and numbers that are no reals."""
    made = se(64)
    made.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    before = digest(made.state_dict())
    fill_sites(tv.resnet18(), lambda channels: made, after="bn1", seed=0)
    assert digest(made.state_dict()) == before


def test_attributes_are_those_of_the_layer_and_tensors_are_not():
    network = fill_sites(tv.resnet18(), se, after="bn1")
    network.eval()
    # A moving average by the names of named_parameters.
    assert not network.load_state_dict(dict(network.named_parameters()), False).unexpected_keys
    assert not any(module.training for module in network.modules())
    network.bn1.eps = 0.5
    assert network.bn1.layer.eps == network.bn1.eps == 0.5 and network.bn1.num_features == 64
    network.bn1.weight = nn.Parameter(torch.zeros(64))
    assert not network.bn1.layer.weight.any()
    with pytest.raises(AttributeError, match=r"its running_mean is \.layer\.running_mean"):
        network.bn1.running_mean  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        network.bn1.nothing  # noqa: B018


def test_what_a_tool_notes_on_every_module_is_noted_on_each():
    """Children first, as `apply` goes: the layer has the name before what stands around it."""
    network = fill_sites(tv.resnet18(), se, after="layer*.*.bn2").eval()
    network.apply(lambda module: setattr(module, "calls", 0))
    network.apply(lambda module: module.register_buffer("total", torch.zeros(1)))

    def note(module, *_):
        module.calls, module.total = module.calls + 1, module.total + 1

    used = network.layer1[0].bn2
    for module in (used, used.layer, used.attention):
        module.register_forward_hook(note)
    network(images())
    found = {(module.calls, module.total.item()) for module in (used, used.layer, used.attention)}
    assert found == {(1, 1)}


def test_a_map_as_wide_as_the_networks_head_is_a_map():
    parts = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*parts, nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
    fill_sites(network, Scale, after="1", example=images(64))
    assert len(network[1].attention.scale) == 16


def test_a_module_with_two_names_is_one_module():
    conv, x = nn.Conv2d(3, 3, 1), images()
    network = fill_sites(nn.Sequential(conv, nn.ReLU(), conv), Scale, after="[02]")
    assert network[0] is network[2] and network[0].layer is conv
    torch.testing.assert_close(network[0](x), network[0].attention(conv(x)))
    assert list(remove_attention(network)) == [conv, network[1], conv]


# --------------------------------------------------------------------------------------------------
# Blends: a trained network starts as it was, and its new modules learn

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
