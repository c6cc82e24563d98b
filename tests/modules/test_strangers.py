"""What `fill_sites` does in anybody's network: widths, modes, types, replacing, refusals."""

import contextlib
import copy
import random

import numpy as np
import pytest
import timm
import torch
import torchvision
from plain import digest
from strangers import Scale, images, se
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lcm import fill_sites, remove_attention
from lcm.attention import SqueezeExcite

tv = torchvision.models


def state(network):
    """All that filling may not touch: modules, modes, tensors, random generators."""
    names = [(name, type(m), m.training) for name, m in network.named_modules()]
    generators = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    return names, digest(network.state_dict()), generators


# --------------------------------------------------------------------------------------------------
# Widths

NORMS = {
    "frozen": torchvision.ops.FrozenBatchNorm2d(6),
    "frozen, timm": timm.layers.FrozenBatchNormAct2d(6),
    "synchronised": nn.SyncBatchNorm(6),
    "instance": nn.InstanceNorm2d(6),
    "group": nn.GroupNorm(2, 6),
    "group, timm": timm.layers.GroupNormAct(6, 2),
    "layer, torchvision": tv.convnext.LayerNorm2d(6),
    "layer, timm": timm.layers.LayerNorm2d(6),
    "layer, no weights": timm.layers.LayerNorm2d(6, affine=False),
    "RMS, timm": timm.layers.RmsNorm2d(6),
    "with activation": timm.layers.BatchNormAct2d(6),
    "lazy convolution": nn.LazyConv2d(6, 1),
    "transposed": nn.ConvTranspose2d(6, 6, 1),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_layer_that_knows_its_width_needs_no_example(name):
    network, widths = nn.Sequential(nn.Conv2d(3, 6, 1), copy.deepcopy(NORMS[name])).eval(), []
    fill_sites(network, lambda channels: widths.append(channels) or se(channels), after="1")
    assert widths == [6] and network(images()).shape == (2, 6, 32, 32)


class Odd(nn.Module):
    """Counts its calls in a buffer, also in evaluation, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * (torch.rand(1) + np.random.rand() + random.random())


def test_an_example_tells_widths_and_leaves_no_trace():
    network, plain = (
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), Odd(), nn.Dropout(), nn.Flatten())
        for _ in range(2)
    )
    network.load_state_dict(plain.state_dict())
    network[1].eval()
    for after in ("2", "3"):
        before = state(network)
        with pytest.raises(ValueError, match=rf"{after} is a .*, which does not say .*`example`"):
            fill_sites(network, se, after=after)
        assert state(network) == before
        fill_sites(network, se, after=after, seed=0, example=images())
    assert network[2].attention.w1.in_features == network[3].attention.w1.in_features == 6
    assert digest(plain.state_dict()) == digest(
        {key: value for key, value in network.state_dict().items() if "attention" not in key}
    )
    assert (network[0].training, network[1].training, network[2].training) == (True, False, True)
    assert state(network)[2] == before[2]


@pytest.mark.parametrize(
    ("make", "after", "message"),
    [
        (tv.resnet50, "layer1.*.relu", "layer1.0.relu is a ReLU that is called with maps of "
                                       "64, 256 channels"),
        (tv.resnet18, "fc", r"fc is a Linear, which makes \(1, 1000\) float32, no map"),
        (tv.swin_t, "features.1.*", r"features.1.0 is a .*, which makes \(1, 16, 16, 96\) "
                                    r"float32, no map"),
        (tv.googlenet, "aux1.fc1", "aux1.fc1 is a Linear, .* not called with the example either"),
        (lambda: nn.Sequential(nn.MaxPool2d(2, return_indices=True), nn.Identity()), "0",
            "makes a tuple, no map"),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(7, 7)), "0", r"Sequential fails on \(1, 3, 64, "
                                                                 r"64\) float32: Runtime"),
    ],
    ids=["widths", "linear", "channels last", "not called", "tuple", "fails"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_makes_no_maps_of_one_width_is_refused(make, after, message):
    network = make()
    names = list(network.state_dict())
    with pytest.raises(ValueError, match=message):
        fill_sites(network, se, after=after, example=images(64, 1))
    assert list(network.state_dict()) == names


def test_a_module_that_does_not_keep_the_shape_is_refused():
    network = nn.Sequential(nn.ReLU(), nn.Flatten())
    with pytest.raises(
        ValueError, match=r"makes \(2, 3, 16, 16\) float32 of a map \(2, 3, 32, 32\)"
    ):
        fill_sites(network, lambda _: nn.AvgPool2d(2), after="0", example=images(count=1))
    with pytest.raises(ValueError, match=r"the factory gives a .*function.*, which is no torch"):
        fill_sites(network, lambda _: torch.relu_, after="0", example=images())


# --------------------------------------------------------------------------------------------------
# What new modules take from the network


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("where", [{}, {"after": "layer*.*.bn2"}, {"instead_of": "layer*.*.bn2"}])
def test_new_modules_take_mode_and_type(where, dtype):
    network = tv.resnet18().to(dtype).eval()
    network.layer2.train()
    fill_sites(network, lambda channels: nn.BatchNorm2d(channels), **where)
    new = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    assert all(m.weight.dtype == m.running_mean.dtype == dtype for m in new)
    assert {m.training for name, m in network.named_modules() if "layer2" in name} == {True}
    assert {m.training for name, m in network.named_modules() if "layer1" in name} == {False}
    assert network(images().to(dtype)).dtype == dtype


# --------------------------------------------------------------------------------------------------
# In place of layers


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: timm.create_model("mobilenetv3_small_050"), "SqueezeExcite"),
        (tv.mobilenet_v3_small, "SqueezeExcitation"),
    ],
    ids=["timm", "torchvision"],
)
def test_a_networks_own_attention_is_replaced(make, kind):
    network = make().eval()
    before = network.state_dict()
    names = [name for name, m in network.named_modules() if type(m).__name__ == kind]
    for name in names:
        fill_sites(network, se, instead_of=name, example=images(64))
    assert len(names) == 9
    assert all(type(network.get_submodule(name)) is SqueezeExcite for name in names)
    after = network.state_dict()
    kept = [key for key in before if key.rpartition(".")[0].rpartition(".")[0] not in names]
    assert len(kept) + 4 * 9 == len(after)
    assert all(torch.equal(after[key], before[key]) for key in kept)
    assert network(images(64)).shape == (2, 1000)


@pytest.mark.parametrize("example", [None, images()])
def test_only_what_keeps_the_shape_is_replaced(example):
    network = tv.resnet18()
    with pytest.raises(
        ValueError, match=r"layer2.0.conv1 is a Conv2d, which (does not|makes .*keeps)"
    ):
        fill_sites(network, se, instead_of="layer2.0.conv1", example=example)
    fill_sites(network, se, instead_of="layer2.0.bn1", example=example)
    assert isinstance(network.layer2[0].bn1, SqueezeExcite)


# --------------------------------------------------------------------------------------------------
# All or nothing, and what is refused


@pytest.mark.parametrize("where", [{}, {"after": "layer*.*.bn2"}, {"instead_of": "layer*.*.bn2"}])
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
    with pytest.raises(ValueError, match=r"stage 9"):
        fill_sites(network, se, {"stages": [9]})
    assert len(made) == 4 and state(network) == before


@contextlib.contextmanager
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@process_group()
def ddp(network):
    return nn.parallel.DistributedDataParallel(network)


@process_group()
def fsdp(network):
    return fully_shard(network, mesh=init_device_mesh("cpu", (1,)))


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def with_a_part(wrap):
    def wrapped(network):
        network.layer2 = wrap(network.layer2)
        return network

    return wrapped


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": ddp,
    "FSDPModule": fsdp,
    "OptimizedModule": torch.compile,
    "compiled": compiled_in_place,
    "ScriptModule": lambda network: torch.jit.trace(network.eval(), images(64)),
    "layer2 is wrapped in FSDPModule": with_a_part(fsdp),
    "layer2 is compiled": with_a_part(compiled_in_place),
    "layer2 is wrapped in OptimizedModule": with_a_part(torch.compile),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPED)
def test_a_network_that_does_not_see_a_change_is_refused(name):
    network = WRAPPED[name](fill_sites(tv.resnet18(), nn.BatchNorm2d, after="layer1.0.bn1"))
    message = f"{name}, which does not see a change: change the network first"
    for keys in ({"after": "*"}, {"instead_of": "*"}, {}):
        with pytest.raises(ValueError, match=message):
            fill_sites(network, se, **keys)
    with pytest.raises(ValueError, match=message):
        remove_attention(network)


class Child(nn.Module):
    """Calls a child of this name."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return next(self.children())(x)


def test_a_layers_own_child_called_attention_stays():
    network, x = nn.Sequential(Child("attention")).eval(), images()
    y, before = network(x), network.state_dict()
    fill_sites(network, Scale, after="0", example=x)
    after = network.state_dict()
    assert set(after) - set(before) == {"0.attention2.scale"}
    torch.testing.assert_close(network(x), network[0].attention2(y))
    network.load_state_dict({key: torch.zeros_like(value) for key, value in after.items()})
    assert not network[0].attention.weight.any() and not network[0].attention2.scale.any()


def test_a_child_with_a_name_that_is_needed_is_refused():
    with pytest.raises(ValueError, match="0 has a child `layer`, a name that is needed here"):
        fill_sites(nn.Sequential(Child("layer")), se, after="0", example=images())


def test_attributes_are_those_of_the_layer_and_tensors_are_not():
    network = fill_sites(tv.resnet18(), se, after="bn1")
    network.eval()
    assert not any(module.training for module in network.modules())
    network.bn1.eps = 0.5
    assert network.bn1.layer.eps == network.bn1.eps == 0.5 and network.bn1.num_features == 64
    network.bn1.weight = nn.Parameter(torch.zeros(64))
    assert not network.bn1.layer.weight.any()
    with pytest.raises(AttributeError, match=r"its running_mean is \.layer\.running_mean"):
        network.bn1.running_mean  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        network.bn1.nothing  # noqa: B018


def test_a_module_with_two_names_is_one_module():
    conv = nn.Conv2d(3, 3, 1)
    network = fill_sites(nn.Sequential(conv, nn.ReLU(), conv), nn.BatchNorm2d, after="[02]")
    assert network[0] is network[2] and network[0].layer is conv
    fill_sites(network, nn.BatchNorm2d, after="2")
    assert list(network[0]._modules) == ["layer", "attention", "attention2"]


# --------------------------------------------------------------------------------------------------
# Networks of torchvision's blocks


def test_a_derived_block_is_refused_and_nothing_is_filled():
    class Block(tv.resnet.BasicBlock):
        pass

    network = tv.resnet18()
    network.layer3[0].__class__ = Block
    before = state(network)
    with pytest.raises(ValueError, match=r"layer3.0 is a Block, which may compute something else"):
        fill_sites(network, se)
    assert state(network) == before
