"""A module or a network of one's own: what its constructor sets stays, and what will not do is said
before anything starts."""

import random

import numpy as np
import pytest
import torch
from plain import digest
from torch import nn

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


class Changed(LCM2):
    """Derived from a module of the project, with a parameter that no layer can draw."""

    def __init__(self, channels):
        super().__init__(channels, 4)
        self.gain = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return super().forward(x) * self.gain


@pytest.mark.parametrize("target", ["Gate", "Changed"])
def test_a_module_keeps_what_its_constructor_set(target):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = build_network(RESNET, own(target), seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]
    torch.rand(3), np.random.rand(3), random.random()
    again, other = (build_network(RESNET, own(target), seed=seed) for seed in (1, 2))
    assert digest(first.state_dict()) == digest(again.state_dict())
    site, sibling = first.stage2[0].site, other.stage2[0].site
    if target == "Gate":
        assert not site.gate.any() and (site.scale == 2).all()
        assert (site.random != sibling.random).all()
        assert (site.random != first.stage1[0].site.random).all()
    if target == "Changed":
        assert site.gain == 3
    plain = build_network(RESNET, seed=1).state_dict()  # the same backbone as without
    assert all(torch.equal(first.state_dict()[key], value) for key, value in plain.items())


def mine(target, **keys):
    return {"name": "mine", "family": "mine", "image_size": 32, "_target_": target} | keys


def test_a_network_keeps_what_its_constructor_set():
    model = mine(f"{__name__}.Backbone")
    first, again, other = (build_network(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert digest(first) == digest(again) != digest(other)
    assert (first["token"] == 7).all()
    filled = build_network(model, own("Gate"), seed=1).state_dict()
    assert all(torch.equal(filled[key], value) for key, value in first.items())


class Backbone(nn.Module):
    """With a token that no layer draws."""

    def __init__(self, num_classes, logits=None):
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 8, 1, 1), 7.0))
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


def late(channels):
    """Has a layer of which nobody knows the width before the first map."""
    return nn.LazyConv2d(channels, 1)


def late_network(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes, bias=False))


def refusing(size):
    """Says nothing about why."""
    raise ValueError


def refusing_network(num_classes):
    raise ValueError(f"{num_classes} classes are too many")


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
    "wide": lambda x, _: torch.cat((x, x), 1),
    "32": lambda x, _: x * x.new_ones(32, 32),
    "20": lambda x, _: x * x.new_ones(20, 20),
    "nothing": lambda x, _: None,
}
SAID = "attention=mine does not fit model=resnet20: "
HERE = f"{SAID}at a map (16, 32, 32): "
KEEP = " float32 of (2, 16, 32, 32) float32 in training, and has to keep shape and type"


@pytest.mark.parametrize(
    ("attention", "problem"),
    [
        (own("Gate"), ""),
        (load("attention", "cbam") | {"name": "mine", "reduction": 4, "bias": True}, ""),
        (own("Returns", make="weights"), f"{HERE}it makes (2, 16, 1, 1){KEEP}"),
        (own("Returns", make="wide", sites={"stages": [3]}),
            "at a map (64, 8, 8): it makes (2, 128, 8, 8) float32 of (2, 64, 8, 8)"),
        (own("Returns", make="tuple"), f"{HERE}it makes a tuple of"),
        (own("Returns", make="nothing"), f"{HERE}it makes a NoneType of"),
        (own("Returns", make="half"), f"{HERE}it makes (2, 16, 32, 32) float16 of"),
        (own("Returns", make="smaller in evaluation"),
            f"{HERE}it makes (2, 16, 32, 31) float32 of (2, 16, 32, 32) float32 in evaluation"),
        (own("Returns", make="32"), "at a map (32, 16, 16): RuntimeError: The size of tensor a"),
        (own("Returns", make="32", sites={"stages": [1]}), ""),
        (own("late"), f"{HERE}its forward pass makes the parameter bias: make it in the"),
        (own("refusing"), f"{HERE}ValueError"),
        (own("Returns"), "missing 1 required positional argument: 'make'"),
        (own("Absent"), "Absent"),
        ({"name": "mine", "_target_": "torch.nn.functional.relu"}, "argument 'input'"),
        ({"name": "mine", "_target_": "math.sqrt"}, "AttributeError: 'float' object"),
        (own("Gate", sites={"stages": [4]}), "model=resnet20: there is no free site in stage 4"),
    ],
    ids=lambda value: "".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_module_is_checked_before_anything_starts(attention, problem):
    before = torch.get_rng_state()
    found = site_problems(RESNET, attention, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == bool(problem) and problem in "".join(found)
    assert all(line.startswith(SAID) and "\n" not in line for line in found)


@pytest.mark.parametrize(
    ("model", "attention", "problem"),
    [
        ("Backbone", "Gate", ""),
        ("Backbone", "32", "does not fit model=mine: at a map (8, 16, 16): RuntimeError"),
        ("wide", "20", ""),
        ("torchvision.models.resnet18", "Gate", ""),
        ("torchvision.models.vgg11", "none", ""),
        ("torchvision.models.vgg11", "Gate", "does not fit model=mine: VGG has no free site"),
        ("torchvision.models.alexnet", "none", "model=mine: RuntimeError: Given input size"),
        ("late_network", "none", "model=mine: its forward pass makes the parameter 1.weight"),
        ("refusing_network", "none", "model=mine: 10 classes are too many"),
        ("four", "none",
            "model=mine: it makes (2, 4) float32 of images (2, 3, 32, 32), not logits (2, 10)"),
        ("four", "Gate", "model=mine: it makes (2, 4) float32"),
    ],
)  # fmt: skip
def test_a_network_is_checked_before_anything_starts(model, attention, problem):
    changes = {"wide": {"image_size": 40}, "four": {"logits": 4}}
    target = model if "." in model else f"{__name__}.{model}"
    if model in changes:
        target = f"{__name__}.Backbone"
    chosen = {"none": {"name": "none"}, "Gate": own("Gate")}
    sized = own("Returns", make=attention, sites={"stages": [1]})
    before = torch.get_rng_state()
    found = site_problems(mine(target, **changes.get(model, {})), chosen.get(attention, sized), 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == bool(problem) and problem in "".join(found)
