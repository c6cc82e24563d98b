"""A module or a network of one's own: what its constructor sets stays, and what will not do is said
before anything starts."""

import random

import numpy as np
import pytest
import torch
from plain import digest
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from lcm import build_network
from lcm.attention import LCM2
from lcm.config.compose import load
from lcm.models import Site
from lcm.models.build import site_problems

RESNET = load("model", "resnet20") | {"layers": 8}


def own(target, **keys):
    return {"name": "mine", "_target_": f"{__name__}.{target}", "sites": "every"} | keys


class Gate(nn.Module):
    """A bare parameter, a zero that has to stay, and random values of three generators."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1))
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 2.0))
        self.random = nn.Parameter(torch.tensor([torch.rand(1), np.random.rand(), random.random()]))

    def forward(self, x):
        return x * (1 + self.gate * self.scale * self.random.sum())


class SelfAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.mix = nn.utils.parametrizations.weight_norm(nn.Linear(channels, channels))
        nn.init.constant_(self.attention.in_proj_bias, 0.25)

    def forward(self, x):
        tokens = self.mix(x.flatten(2).transpose(1, 2))
        return x + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(
            2, x.shape[2:]
        )


class Changed(LCM2):
    """Derived from a module of the project, with a parameter that no layer can draw."""

    def __init__(self, channels):
        super().__init__(channels, 4)
        self.gain = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return super().forward(x) * self.gain


@pytest.mark.parametrize("target", ["Gate", "SelfAttention", "Changed"])
def test_a_module_keeps_what_its_constructor_set(target):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    first = build_network(RESNET, own(target), seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]
    torch.rand(3), np.random.rand(3), random.random()
    again = build_network(RESNET, own(target), seed=1)
    assert digest(first.state_dict()) == digest(again.state_dict())
    other = build_network(RESNET, own(target), seed=2)
    assert digest(first.state_dict()) != digest(other.state_dict())
    site, sibling = first.stage2[0].site, other.stage2[0].site
    if target == "Gate":
        assert not site.gate.any() and (site.scale == 2).all()
        assert (site.random != sibling.random).all() and (
            site.random != first.stage1[0].site.random
        ).all()
    if target == "SelfAttention":
        assert (site.attention.in_proj_bias == 0.25).all()
    if target == "Changed":
        assert site.gain == 3
    plain = build_network(RESNET, seed=1).state_dict()  # the same backbone as without
    assert all(torch.equal(first.state_dict()[key], value) for key, value in plain.items())


def convnext(num_classes):
    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return ConvNeXt(stages, num_classes=num_classes)


@pytest.mark.parametrize("target", ["convnext", "Backbone"])
def test_a_network_keeps_what_its_constructor_set(target):
    model = {"name": "mine", "family": "mine", "image_size": 32, "_target_": f"{__name__}.{target}"}
    first, again = (build_network(model, num_classes=3, seed=1).state_dict() for _ in range(2))
    assert digest(first) == digest(again)
    assert digest(first) != digest(build_network(model, num_classes=3, seed=2).state_dict())
    if target == "convnext":
        assert (first["features.1.0.layer_scale"] == torch.tensor(1e-6)).all()
    if target == "Backbone":
        filled = build_network(model, own("Gate"), num_classes=3, seed=1).state_dict()
        assert (first["token"] == 7).all()
        assert all(torch.equal(filled[key], value) for key, value in first.items())


class Backbone(nn.Module):
    """A token that no layer draws, and a schedule that is read as numbers while it is built."""

    def __init__(self, num_classes, logits=None):
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 8, 1, 1), 7.0))
        self.rates = [x.item() for x in torch.linspace(0, 1, 3)]
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.site = Site(8, 1)
        self.down = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.last = Site(6, 2)
        self.fc = nn.Linear(6, logits or num_classes)

    def forward(self, x):
        x = self.site(self.stem(x)) + self.token
        return self.fc(self.last(self.down(x)).mean((2, 3)))


# --------------------------------------------------------------------------------------------------
# Checks before anything starts


class Sized(nn.Module):
    """Needs the size of its map."""

    def __init__(self, channels, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size, size))

    def forward(self, x):
        return x * self.scale


class Late(nn.Module):
    """Has a layer of which nobody knows the width before the first map."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.LazyConv2d(channels, 1)

    def forward(self, x):
        return self.conv(x)


def late_network(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes, bias=False))


class Refusing(nn.Module):
    """Says nothing about why."""

    def __init__(self, channels):
        raise ValueError


class Returns(nn.Module):
    """What `make` makes of the map and the module."""

    def __init__(self, channels, make):
        super().__init__()
        self.channels = channels
        self.make = MADE[make]

    def forward(self, x):
        return self.make(x, self)


MADE = {
    "weights": lambda x, _: x.mean((2, 3), keepdim=True),
    "tuple": lambda x, _: (x, x),
    "half": lambda x, _: x.half(),
    "smaller in evaluation": lambda x, module: x if module.training else x[..., 1:],
    "reads values": lambda x, _: x * (2 if x.abs().max().item() > 1 else 1),
    "reads values, weights": lambda x, _: x[:, :, :1, :1] * x.max().item(),
    "wide": lambda x, _: torch.cat((x, x), 1),
    "fails": lambda x, _: x.view(3, -1),
    "nothing": lambda x, _: None,
}


@pytest.mark.parametrize(
    ("attention", "problem"),
    [
        (own("Gate"), ""),
        (own("SelfAttention"), ""),
        (load("attention", "cbam") | {"name": "mine", "reduction": 4, "bias": True}, ""),
        (own("Returns", make="reads values"), ""),
        (
            own("Returns", make="weights"),
            "it makes (2, 16, 1, 1) float32 of a map (2, 16, 32, 32) float32 in training",
        ),
        (
            own("Returns", make="wide", sites={"stages": [3]}),
            "it makes (2, 128, 8, 8) float32 of a map (2, 64, 8, 8)",
        ),
        (own("Returns", make="tuple"), "it makes a tuple of a map (2, 16, 32, 32) float32"),
        (own("Returns", make="nothing"), "it makes a NoneType of a map"),
        (
            own("Returns", make="half"),
            "it makes (2, 16, 32, 32) float16 of a map (2, 16, 32, 32) float32",
        ),
        (
            own("Returns", make="smaller in evaluation"),
            "makes (2, 16, 32, 31) float32 of a map (2, 16, 32, 32) float32 in eval",
        ),
        (own("Returns", make="reads values, weights"), "it makes (2, 16, 1, 1) float32 of a map"),
        (
            own("Returns", make="fails"),
            "it fails on a map (2, 16, 32, 32) float32 in training: RuntimeError",
        ),
        (
            own("Sized", size=32),
            "it fails on a map (2, 32, 16, 16) float32 in training: RuntimeError",
        ),
        (own("Sized", size=32, sites={"stages": [1]}), ""),
        (own("Late"), "its forward pass makes the parameter conv.bias: make it in the constructor"),
        (own("Refusing"), "ValueError"),
        (own("Sized"), "missing 1 required positional argument: 'size'"),
        (own("Absent"), "Absent"),
        ({"name": "mine", "_target_": "torch.nn.functional.relu"}, "argument 'input'"),
        ({"name": "mine", "_target_": "math.sqrt"}, "a float is no torch.nn.Module"),
    ],
    ids=lambda value: "".join(str(v) for v in value.values()) if isinstance(value, dict) else "",
)
def test_a_module_is_checked_before_anything_starts(attention, problem):
    before = torch.get_rng_state()
    found = site_problems(RESNET, attention, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == bool(problem) and problem in "".join(found)
    if problem:
        assert (
            found[0].startswith("attention=mine does not fit model=resnet20: ")
            and "\n" not in found[0]
        )


@pytest.mark.parametrize(
    ("keys", "attention", "problem"),
    [
        ({}, own("Gate"), ""),
        ({"image_size": 40}, own("Sized", size=20, sites={"stages": [1]}), ""),
        ({}, own("Sized", size=16), "does not fit model=mine: it fails on a map (2, 6, 8, 8)"),
        (
            {"logits": 4},
            own("Gate"),
            "model=mine: it makes (2, 4) float32 of images (2, 3, 32, 32), not logits (2, 10)",
        ),
        ({"logits": 4}, {"name": "none"}, "model=mine: it makes (2, 4) float32"),
        ({"_target_": "torchvision.models.vgg11"}, {"name": "none"}, ""),
        (
            {"_target_": "torchvision.models.vgg11"},
            own("Gate"),
            "attention.sites: model=mine: the network has no",
        ),
        ({"_target_": "torchvision.models.resnet18"}, own("Gate"), ""),
        (
            {"_target_": "torchvision.models.alexnet"},
            {"name": "none"},
            "model=mine: AlexNet fails on (2, 3, 32, 32)",
        ),
        (
            {"_target_": f"{__name__}.late_network"},
            {"name": "none"},
            "model=mine: its forward pass makes the parameter 1.weight",
        ),
        (
            {},
            own("Gate", sites={"stages": [3]}),
            "attention.sites: model=mine: there is no free site in stage 3",
        ),
    ],
)
def test_a_network_is_checked_before_anything_starts(keys, attention, problem):
    model = {"name": "mine", "family": "mine", "image_size": 32, "_target_": f"{__name__}.Backbone"}
    found = site_problems(model | keys, attention, 10)
    assert len(found) == bool(problem) and problem in "".join(found)
