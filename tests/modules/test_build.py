"""Names, mappings and overrides; what is wrong is named."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from plain import digest
from strangers import Calls, Mute, state
from torch import nn

from lcm import UserError, build_network
from lcm.attention import LCM2, SqueezeExcite
from lcm.config.compose import choices, load
from lcm.models import CifarResNet, Site
from lcm.models.build import site_problems

TINY = {
    "name": "tiny",
    "family": "tiny",
    "image_size": 32,
    "_target_": "lcm.models.CifarResNet",
    "layers": 8,
}


def test_reductions_follow_the_family_and_overrides_reach_both_mappings():
    site = build_network("resnet20", "lcm2").stage3[0].site
    assert site.w1.weight.shape[:2] == (16, 64) and site.w2.bias is None
    assert build_network("densenet40", "lcm2").block1[0].site.w2.bias is not None
    assert build_network("densenet40", "cbam").block1[0].site.w0.bias is None
    changes = {"layers": 8, "reduction": 8, "sites": {"last_of_stage": 3}}
    network = build_network("resnet20", "se", num_classes=3, **changes)
    found = {n: m.w1.out_features for n, m in network.named_modules() if type(m) is SqueezeExcite}
    assert found == {"stage3.0.site": 8} and network.fc.out_features == 3


def test_mappings_as_hydra_composes_them_are_left_alone():
    pair = {"model": load("model", "densenet40"), "attention": load("attention", "cbam")}
    raw = OmegaConf.create(pair)
    resolved = OmegaConf.to_container(raw, resolve=True)
    expected = digest(build_network("densenet40", "cbam", seed=1, layers=7).state_dict())
    for model, attention in ((raw.model, raw.attention), resolved.values(), pair.values()):
        before = copy.deepcopy((model, attention))
        network = build_network(model, attention, seed=1, layers=7)
        assert digest(network.state_dict()) == expected and (model, attention) == before


def test_a_model_of_ones_own_gives_its_sizes_itself():
    assert isinstance(
        build_network(TINY, "lcm2", reduction=4, expand_bias=False).stage1[0].site, LCM2
    )
    with pytest.raises(UserError, match="no sizes for networks of the family tiny"):
        build_network(TINY, "lcm2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model=resnet_20",
            "model=resnet_20: no such model; choose from densenet100, densenet121, densenet40",
        ),
        ("model=resnet20 attention=lcm", "attention=lcm: no such attention; choose from "),
        (
            "model=resnet20 attention=se reducton=8",
            "'reducton' is no key of resnet20 and attention se; nearest: reduction; the "
            "keys are: layers",
        ),
        ("model=resnet20 reduction=8", "the keys are: layers."),
        (
            "model=resnet20 attention=lcm2 reduction=17",
            "reduction 17 is larger than the 16 channels",
        ),
        (
            "model=resnet20 attention=gc reduction=32",
            "reduction 32 leaves one of 32 channels, and a layer norm of one channel is constant",
        ),
        ("model=resnet20 layers=2", "6n + 2 layers (8, 14, 20, 26, 32, ...), not 2"),
        ("model=resnet20 layers=21", "6n + 2 layers (8, 14, 20, 26, 32, ...), not 21"),
        ("model=densenet40 layers=4", "3n + 4 layers (7, ..., 40, 64, 100, ...), not 4"),
        ("model=densenet40 layers=41", "3n + 4 layers (7, ..., 40, 64, 100, ...), not 41"),
        ("model=densenet40 memory=big", "memory='big' is not one of: fast, linear"),
        ("model=resnet20 attention=se sites=some", 'is not "every"'),
    ],
)
def test_what_is_wrong_is_named(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_network(**OmegaConf.from_dotlist(words.split()))


@pytest.mark.parametrize("group", ["model", "attention"])
def test_a_file_carries_its_own_name(group):
    assert [load(group, name)["name"] for name in choices(group)] == choices(group)


@pytest.mark.parametrize("group, key", [("model", "layers"), ("attention", "gamma")])
def test_a_target_below_a_key_is_not_called(group, key, tmp_path):
    """A run.json may come from anybody: Hydra would call what stands below a key, too."""
    mappings = {"model": load("model", "resnet20"), "attention": load("attention", "eca")}
    mappings[group][key] = {"_target_": "os.mkdir", "path": str(tmp_path / "called")}
    with pytest.raises((UserError, TypeError)):
        build_network(**mappings)
    assert not (tmp_path / "called").exists()


# --------------------------------------------------------------------------------------------------
# A module or a network of one's own: what its constructor sets stays, and what will not do is said
# before anything starts

RESNET = load("model", "resnet20") | {"layers": 8}


def own(target, **keys):
    return {"name": "mine", "_target_": f"{__name__}.{target}", "sites": "every"} | keys


def gate(channels):
    """A zero that has to stay, and random values of three generators; all are bare parameters."""
    three = torch.rand(1).item(), np.random.rand(), random.random()
    return Calls(
        lambda m, x: x * (1 + m.gate * m.scale * m.random.sum()),
        gate=nn.Parameter(torch.zeros(channels, 1, 1)),
        scale=nn.Parameter(torch.full((channels, 1, 1), 2.0)),
        random=nn.Parameter(torch.tensor(three)),
    )


class Changed(LCM2):
    """Derived from a module of the project, with a parameter that no layer can draw."""

    def __init__(self, channels):
        super().__init__(channels, 4)
        self.gain = nn.Parameter(torch.full((1,), 3.0))


@pytest.mark.parametrize("target", ["gate", "Changed"])
def test_a_module_keeps_what_its_constructor_set(target):
    _, _, generators = state(nn.Identity())
    first = build_network(RESNET, own(target), seed=1)
    assert state(nn.Identity())[2] == generators
    torch.rand(3), np.random.rand(3), random.random()
    again, other = (build_network(RESNET, own(target), seed=seed) for seed in (1, 2))
    assert digest(first.state_dict()) == digest(again.state_dict())
    site, sibling = first.stage2[0].site, other.stage2[0].site
    if target == "gate":
        assert not site.gate.any() and (site.scale == 2).all()
        assert (site.random != sibling.random).all()
        assert (site.random != first.stage1[0].site.random).all()
    if target == "Changed":
        assert site.gain == 3
    plain = build_network(RESNET, seed=1).state_dict()  # the same backbone as without
    assert all(torch.equal(first.state_dict()[key], value) for key, value in plain.items())


def sized(channels, image_size):
    return Calls(lambda m, x: x, image_size=image_size)


def test_an_argument_may_be_called_as_a_fact_is():
    assert build_network(RESNET, own("sized", image_size=14)).stage1[0].site.image_size == 14


def mine(target, **keys):
    return {"name": "mine", "family": "mine", "image_size": 32, "_target_": target} | keys


def test_a_network_keeps_what_its_constructor_set():
    model = mine(f"{__name__}.backbone")
    first, again, other = (build_network(model, seed=seed).state_dict() for seed in (1, 1, 2))
    assert digest(first) == digest(again) != digest(other)
    assert (first["token"] == 7).all()
    filled = build_network(model, own("gate"), seed=1).state_dict()
    assert all(torch.equal(filled[key], value) for key, value in first.items())
    assert (build_network(mine(f"{__name__}.trained"), seed=1).fc.weight == 5).all()


def trained(num_classes):
    """One of the project's own networks, with weights that were trained, say."""
    network = CifarResNet(8, num_classes)
    nn.init.constant_(network.fc.weight, 5)
    return network


def backbone(num_classes, logits=None, call=True):
    """With a token that no layer draws."""
    return Calls(
        lambda m, x: m.fc(((m.site(m.stem(x)) if call else m.stem(x)) + m.token).mean((2, 3))),
        token=nn.Parameter(torch.full((1, 6, 1, 1), 7.0)),
        stem=nn.Conv2d(3, 6, 3, stride=2, padding=1),
        site=Site(6, 1),
        fc=nn.Linear(6, logits or num_classes),
    )


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


def returns(channels, make):
    """What `make` makes of the map and the module."""
    return Calls(lambda m, x: MADE[make](x, m))


def buffered(channels):
    """A buffer that gets its shape with the first map."""

    def call(module, x):
        module.mask = torch.ones(x.shape[1:])
        return x * module.mask

    module = Calls(call)
    module.register_buffer("mask", torch.zeros(0))
    return module


def mute(channels):
    return Mute(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(channels))


MADE = {
    "weights": lambda x, _: x.mean((2, 3), keepdim=True),
    "tuple": lambda x, _: (x, x),
    "half": lambda x, _: x.half(),
    "smaller in evaluation": lambda x, module: x if module.training else x[..., 1:],
    "wide": lambda x, _: torch.cat((x, x), 1),
    "32": lambda x, _: x * x.new_ones(32, 32),
    "20": lambda x, _: x * x.new_ones(20, 20),
    "nothing": lambda x, _: None,
    "a buffer": lambda x, module: (module.register_buffer("made", x), x)[1],
}
SAID = "attention=mine does not fit model=resnet20: "
HERE = f"{SAID}at a map (16, 32, 32): "
KEEP = " float32 of (2, 16, 32, 32) float32 in training, and has to keep shape and type"


BACKBONE, NONE = f"{__name__}.backbone", {"name": "none"}


@pytest.mark.parametrize(
    ("model", "attention", "problem"),
    [
        (RESNET, own("gate"), ""),
        (RESNET, load("attention", "cbam") | {"name": "mine", "reduction": 4, "bias": True}, ""),
        (RESNET, own("returns", make="weights"), f"{HERE}it makes (2, 16, 1, 1){KEEP}"),
        (RESNET, own("returns", make="wide", sites={"stages": [3]}),
            f"{SAID}at a map (64, 8, 8): it makes (2, 128, 8, 8) float32 of (2, 64, 8, 8)"),
        (RESNET, own("returns", make="tuple"), f"{HERE}it makes a tuple of"),
        (RESNET, own("returns", make="nothing"), f"{HERE}it makes a NoneType of"),
        (RESNET, own("returns", make="half"), f"{HERE}it makes (2, 16, 32, 32) float16 of"),
        (RESNET, own("returns", make="smaller in evaluation"),
            f"{HERE}it makes (2, 16, 32, 31) float32 of (2, 16, 32, 32) float32 in evaluation"),
        (RESNET, own("returns", make="32"),
            f"{SAID}at a map (32, 16, 16): RuntimeError: The size of tensor a"),
        (RESNET, own("returns", make="32", sites={"stages": [1]}), ""),
        (RESNET, own("late"), f"{HERE}its forward pass makes the parameter or buffer bias: make"),
        (RESNET, own("returns", make="a buffer"),
            f"{HERE}its forward pass makes the parameter or buffer made: make it in"),
        (RESNET, own("buffered"), f"{HERE}its forward pass makes the parameter or buffer mask:"),
        (RESNET, own("mute"), ""),
        (RESNET, own("refusing"), f"{HERE}ValueError"),
        (RESNET, own("returns"), "missing 1 required positional argument: 'make'"),
        (RESNET, own("Absent"), "Absent"),
        (RESNET, {"name": "mine", "_target_": "torch.nn.functional.relu"}, "argument 'input'"),
        (RESNET, {"name": "mine", "_target_": "math.sqrt"}, "AttributeError: 'float' object"),
        (RESNET, own("gate", sites={"stages": [4]}), f"{SAID}there is no free site in stage 4"),
        (RESNET, own("gate", sites={"stages": [3, 2, 3]}),
            f"{SAID}the stages [3, 2, 3] have to rise: [2, 3]"),
        (mine(BACKBONE), own("gate"), ""),
        (mine(BACKBONE), own("returns", make="32"),
            "attention=mine does not fit model=mine: at a map (6, 16, 16): RuntimeError"),
        (mine(BACKBONE, image_size=40), own("returns", make="20"), ""),
        (mine(BACKBONE, image_size=12), own("gate"), ""),  # its last layer is as wide as its maps
        (mine(BACKBONE, call=False), own("gate"),
            "site is a Site that the network's forward pass does not call"),
        (mine("torchvision.models.resnet18"), own("gate"), ""),
        (mine("torchvision.models.vgg11"), NONE, ""),
        (mine("torchvision.models.vgg11"), own("gate"), "does not fit model=mine: VGG has no free"),
        (mine("torchvision.models.alexnet"), NONE, "model=mine: RuntimeError: Given input size"),
        (mine(f"{__name__}.late_network"), NONE,
            "model=mine: its forward pass makes the parameter or buffer 1.weight"),
        (mine("torchvision.models.googlenet", image_size=64, init_weights=False), NONE,
            "model=mine: it makes a GoogLeNetOutputs of images (2, 3, 64, 64), not logits"),
        (RESNET | {"image_size": 48}, NONE, "model=resnet20: RuntimeError: mat1 and mat2 shapes"),
        (RESNET | {"layers": 9}, NONE, "model=resnet20: a ResNet for 32x32 images has 6n + 2"),
        (mine(BACKBONE, logits=4), NONE,
            "model=mine: it makes (2, 4) float32 of images (2, 3, 32, 32), not logits (2, 10)"),
        (mine(BACKBONE, logits=4), own("gate"), "model=mine: it makes (2, 4) float32"),
    ],
    ids=lambda value: "".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_networks_and_modules_are_checked_before_anything_starts(model, attention, problem):
    before = torch.get_rng_state()
    found = site_problems(model, attention, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == bool(problem) and problem in "".join(found) and "\n" not in "".join(found)
