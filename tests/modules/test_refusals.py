"""What `fill_sites` refuses, with its messages; the network is then as it was."""

import contextlib

import pytest
import torch
import torchvision
from strangers import Child, images, se, state
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lcm import fill_sites, remove_attention
from lcm.models import CifarResNet

tv = torchvision.models


class Derived(tv.resnet.BasicBlock):
    pass


class InPlace(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x.mul_(0.5)


def layers(*modules):
    return lambda: nn.Sequential(*modules)


def cifar_resnet():
    return CifarResNet(layers=14, num_classes=10)


def filled(**keys):
    return lambda: fill_sites(tv.resnet18(), nn.BatchNorm2d, **keys)


def resnet18_with_a_derived_block():
    network = tv.resnet18()
    network.layer3[0].__class__ = Derived
    return network


NO_MAPS = [nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4)]
NO_MAPS += [nn.Conv1d(4, 4, 1), nn.Conv3d(4, 4, 1), nn.InstanceNorm1d(4), nn.InstanceNorm3d(4)]
EXAMPLE = {"example": images(64, 1)}
REFUSED = [  # the network, the arguments, the message
    # what a pattern means
    (tv.resnet18, {"after": "layr*.*.bn1"},
        r"no module of ResNet has a name like 'layr\*\.\*\.bn1'; nearest: layer\d"),
    (tv.resnet18, {"after": "bn1", "where": {"stages": [1]}}, "exclude each other"),
    (tv.resnet18, {"after": "bn1", "instead_of": "bn1"}, "exclude each other"),
    # how wide the maps are
    *((layers(nn.Conv2d(3, 4, 1), layer), {"after": "*"},
        f"1 is a {type(layer).__name__}, which does not say how many channels its maps have")
        for layer in NO_MAPS),
    (tv.resnet50, {"after": "layer1.*.relu"} | EXAMPLE,
        "layer1.0.relu is a ReLU that is called with maps of 64, 256 channels"),
    (tv.googlenet, {"after": "aux1.fc1"} | EXAMPLE,
        "aux1.fc1 is a Linear, .* give an `example` of the network's input with which it is"),
    # what is no map
    (tv.resnet18, {"after": "fc"} | EXAMPLE, r"fc is a Linear, which makes \(1, 1000\) float32"),
    (tv.swin_t, {"after": "features.1.*"} | EXAMPLE,
        r"features.1.0 is a .*, which makes \(1, 16, 16, 96\) float32, no map"),
    (layers(nn.MaxPool2d(2, return_indices=True), nn.Identity()), {"after": "0"} | EXAMPLE,
        "makes a tuple, no map"),
    # what cannot be replaced
    (tv.resnet18, {"instead_of": "layer2.0.conv1"}, "layer2.0.conv1 is a Conv2d, which does not"),
    (tv.resnet18, {"instead_of": "layer2.0.conv1"} | EXAMPLE,
        r"layer2.0.conv1 is a Conv2d, which makes .*: only what keeps the shape"),
    (filled(after="bn1"), {"instead_of": "bn1"}, "attention stands behind bn1: take it out first"),
    (layers(Child("layer")), {"after": "0"} | EXAMPLE,
        "0 has a child `layer`, a name that is needed here"),
    # modules that will not do
    (tv.resnet18, {"after": "bn1", "factory": lambda _: nn.AvgPool2d(2)} | EXAMPLE,
        r"at a map \(64, 32, 32\): it makes \(2, 64, 16, 16\) float32 of \(2, 64, 32, 32\)"),
    (tv.resnet18, {"after": "bn1", "factory": InPlace, "blend": True},
        "bn1.attention: a InPlace writes into its map, which a blend needs"),
    # sites
    (cifar_resnet, {"where": "all"}, '"every"'),
    (cifar_resnet, {"where": {"stages": []}}, '"every"'),
    (cifar_resnet, {"where": {"stages": [2], "last_of_stage": 2}}, '"every"'),
    (cifar_resnet, {"where": {"stages": [2, 4]}},
        "no free site in stage 4: the stages are 1, 2, 3"),
    (cifar_resnet, {"where": {"last_of_stage": 0}},
        "no free site in stage 0: the stages are 1, 2, 3"),
    (layers(nn.Linear(3, 3)), {},
        r"Sequential has no free site: name the modules .*after=.*lcm\.models\.Site"),
    (filled(), {}, "ResNet has no free site"),
    (resnet18_with_a_derived_block, {}, "layer3.0 is a Derived, which may compute something else"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "keys", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_will_not_do_is_named_and_nothing_changes(make, keys, message):
    network = make()
    before = state(network)
    with pytest.raises(ValueError, match=message):
        fill_sites(network, **{"factory": se} | keys)
    assert state(network) == before


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
