"""Sites: where they are in each network, how they are filled, and that they change nothing while
they are empty."""

import contextlib
import copy

import pytest
import timm
import torch
import torchvision
from strangers import Calls, Scale, child, images, se, state
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lcm import build_network, fill_sites, remove_attention
from lcm.models import CifarDenseNet, CifarResNet, Site, add_sites, sites

tv = torchvision.models


@pytest.mark.parametrize(
    ("model", "attention", "expected"),
    [
        ("densenet100", "nonlocal", ["block2.31.site"]),
        ("resnet50_cifar", "nonlocal", ["stage2.7.site"]),
        ("densenet121", "nonlocal", ["features.denseblock3.denselayer24.site"]),
        ("resnet50", "nonlocal", ["layer3.5.site"]),
        (
            "resnext50",
            "gc",
            [f"layer{s}.{b}.site" for s, n in ((2, 4), (3, 6), (4, 3)) for b in range(n)],
        ),
        ("resnet20", "gc", [f"stage{s}.{b}.site" for s in (2, 3) for b in range(3)]),
        ("densenet40", "gc", [f"block{s}.{b}.site" for s in (1, 2, 3) for b in range(12)]),
    ],
)
def test_sites_of_the_papers_pairs(model, attention, expected):
    with torch.device("meta"):
        network = build_network(model, attention)
    at_sites = [(name, m) for name, m in network.named_modules() if name.endswith(".site")]
    assert [name for name, module in at_sites if type(module) is not Site] == expected
    assert len(sites(network)) == len(at_sites) - len(expected)


def emptied(network):
    """The network with modules at its sites that let nothing pass."""
    return fill_sites(network, lambda _: Calls(lambda _, x: x * 0))


@torch.no_grad()
def test_a_site_ends_the_residual_branch_before_the_addition():
    basic, bottleneck = (emptied(make()).layer1[0] for make in (tv.resnet18, tv.resnet50))
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(basic(x), x.relu())
    assert torch.equal(bottleneck(x), bottleneck.downsample(x).relu())
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(emptied(CifarResNet(14, 10)).stage1[0](x), x.relu())


@torch.no_grad()
def test_a_site_of_a_dense_layer_sees_only_its_new_maps():
    theirs, ours = tv.densenet121(), CifarDenseNet(10, 12, 10)
    for block, width, new in (
        (emptied(theirs).features.denseblock1, 64, 6 * 32),
        (emptied(ours).block1, 24, 2 * 12),
    ):
        x = torch.randn(2, width, 8, 8)
        assert torch.equal(block(x), torch.cat((x, torch.zeros(2, new, 8, 8)), 1))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tv.resnet18, [2, 2, 2, 2]),
        (tv.resnet50, [3, 4, 6, 3]),
        (tv.densenet121, [6, 12, 24, 16]),
        (lambda: tv.DenseNet(8, (2, 3, 1)), [2, 3, 1]),
        (lambda: tv.DenseNet(8, (1, 1, 2, 1, 1), memory_efficient=True), [1, 1, 2, 1, 1]),
        (lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 2, 1, 1],
            norm_layer=lambda c: nn.GroupNorm(2, c)), [1, 2, 1, 1]),
        (lambda: tv.segmentation.fcn_resnet50(weights_backbone=None), [3, 4, 6, 3]),
    ],
    ids=["resnet18", "resnet50", "densenet121", "three blocks", "five blocks", "group norms",
        "segmentation"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_torchvisions_networks_have_empty_sites_in_each_stage_which_change_nothing(make, expected):
    network = make()
    with_sites = add_sites(copy.deepcopy(network))
    found = [place.module.stage for place in sites(with_sites)]
    assert [found.count(stage + 1) for stage in range(len(expected))] == expected
    assert list(with_sites.state_dict()) == list(network.state_dict())
    for mode in (True, False):
        outputs = []
        for one in (network, with_sites):
            torch.manual_seed(0)  # of dropout
            y = one.train(mode)(images(64))
            outputs.append(y["out"] if isinstance(y, dict) else y)
            outputs[-1].sum().backward()
        assert torch.equal(*outputs)
    for parameter, parameter_ in zip(network.parameters(), with_sites.parameters(), strict=True):
        assert torch.equal(parameter.grad, parameter_.grad)
    fill_sites(with_sites, se)(images(64))


@pytest.mark.parametrize("after", ["layer*", "layer*.*", "layer*.*.conv2"])
def test_stages_are_the_same_where_attention_stands_already(after):
    """Behind blocks and stages, before they are given sites."""
    network = fill_sites(tv.resnet18(), Scale, after=after, example=images(64)).eval()
    x, names = images(64), list(network.state_dict())
    y = network(x)
    found = [(place.name, place.module.stage) for place in sites(add_sites(network))]
    assert found == [(f"layer{i}.{block}.site", i) for i in (1, 2, 3, 4) for block in (0, 1)]
    assert torch.equal(network(x), y) and list(network.state_dict()) == names
    fill_sites(network, Scale, {"last_of_stage": 2})
    assert set(network.state_dict()) - set(names) == {"layer2.1.site.scale"}
    assert not torch.equal(network(x), y)


# --------------------------------------------------------------------------------------------------
# What `fill_sites` refuses, with its messages; the network is then as it was


def layers(*modules):
    return lambda: nn.Sequential(*modules)


def cifar_resnet():
    return CifarResNet(layers=14, num_classes=10)


def filled(**keys):
    return lambda: fill_sites(tv.resnet18(), nn.BatchNorm2d, **keys)


def resnet18_with(key, value):
    """A maker of networks, of which one block has this attribute."""

    def make():
        network = tv.resnet18()
        setattr(network.layer3[0], key, value)
        return network

    return make


NO_MAPS = [
    nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.BatchNorm3d(4),
    nn.Conv1d(4, 4, 1), nn.Conv3d(4, 4, 1), nn.InstanceNorm1d(4), nn.InstanceNorm3d(4),
]  # fmt: skip
EXAMPLE = {"example": images(64, 1)}


def listed(hold):
    """A maker of networks that call a layer which is also held elsewhere."""
    layer = nn.Conv2d(3, 3, 1)
    return lambda: nn.Sequential(
        Calls(lambda m, x: m.last(x), conv=layer, held=hold(layer), last=layer)
    )


REFUSED = [  # the network, the arguments, the message
    # what a pattern means
    (tv.resnet18, {"after": "layr*.*.bn1"},
        r"no module of ResNet has a name like 'layr\*\.\*\.bn1'; nearest: layer\d"),
    (tv.resnet18, {"after": "bn1", "where": {"stages": [1]}}, "exclude each other"),
    (tv.resnet18, {"after": "bn1", "instead_of": "bn1"}, "exclude each other"),
    (tv.resnet18, {"after": ["bn1", "layer1.*.bn2"]}, r"\['bn1', .*\] is no pattern of names"),
    # layers that the network finds elsewhere, too
    *((listed(hold), {"after": "0.conv"}, f"0.held is a plain {kind}, which would keep the layer")
        for kind, hold in {
            "list": lambda layer: [layer],
            "tuple": lambda layer: (1, [layer]),
            "dict": lambda layer: {"p3": layer},
        }.items()),
    # how wide the maps are
    *((layers(nn.Conv2d(3, 4, 1), layer), {"after": "*"},
        f"1 is a {type(layer).__name__}, which does not say how many channels its maps have")
        for layer in NO_MAPS),
    (tv.resnet50, {"after": "layer1.*.relu"} | EXAMPLE,
        "layer1.0.relu is a ReLU that is called 3 times, with maps of 64, 256 channels: one"),
    (tv.resnet18, {"after": "layer1.*.relu"} | EXAMPLE, "called 2 times, with maps of 64 channels"),
    (tv.googlenet, {"after": "aux1.fc1"} | EXAMPLE,
        "aux1.fc1 is a Linear, .* give an `example` of the network's input with which it is"),
    # what is no map
    (tv.resnet18, {"after": "fc"} | EXAMPLE, r"fc is a Linear, which makes \(1, 1000\) float32"),
    (tv.swin_t, {"after": "features.1.*"} | EXAMPLE,
        r"features.1.0 is a .*, which makes \(1, 16, 16, 96\) float32, no map"),
    (tv.convnext_tiny, {"after": "features.1.0.block.4"} | EXAMPLE,
        r"features.1.0.block.4 is a GELU, which makes \(1, 16, 16, 384\) float32, no map"),
    (lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(24, 48, 96, 192)),
        {"after": "stages.*.blocks.*.norm"} | EXAMPLE,
        r"stages.0.blocks.0.norm is a LayerNorm, which makes \(1, 16, 16, 24\) float32, no map"),
    (layers(nn.MaxPool2d(2, return_indices=True), nn.Identity()), {"after": "0"} | EXAMPLE,
        "makes a tuple, no map"),
    # what cannot be replaced
    (tv.resnet18, {"instead_of": "layer2.0.conv1"}, "layer2.0.conv1 is a Conv2d, which does not"),
    (tv.resnet18, {"instead_of": "layer2.0.conv1"} | EXAMPLE,
        r"layer2.0.conv1 is a Conv2d, which makes .*: only what keeps the shape"),
    (filled(after="bn1"), {"instead_of": "bn1"}, "attention stands behind bn1: take it out first"),
    # what has attention already, or its names
    (filled(after="bn1"), {"after": "bn*"}, "attention stands behind bn1: take it out first"),
    *((layers(child(name)), {"after": "0"} | EXAMPLE,
        f"0 has a child `{name}`, a name that is needed here") for name in ("layer", "attention")),
    # modules that will not do
    (tv.resnet18, {"after": "bn1", "factory": lambda _: nn.AvgPool2d(2)} | EXAMPLE,
        r"at a map \(64, 32, 32\): it makes \(2, 64, 16, 16\) float32 of \(2, 64, 32, 32\)"),
    (tv.resnet18,
        {"after": "bn1", "factory": lambda _: Calls(lambda _, x: x.mul_(0.5)), "blend": True},
        "bn1.attention: a Calls writes into its map, which a blend needs"),
    # factories
    (cifar_resnet, {"factory": nn.Identity()}, "factory=Identity"),
    (cifar_resnet, {"factory": lambda channels: channels}, "site: the factory makes a int, no"),
    # sites
    (cifar_resnet, {"where": "all"}, '"every"'),
    (cifar_resnet, {"where": {"stages": []}}, '"every"'),
    (cifar_resnet, {"where": {"stages": [2], "last_of_stage": 2}}, '"every"'),
    (cifar_resnet, {"where": {"stages": [2, 4]}},
        "no free site in stage 4: the stages are 1, 2, 3"),
    (lambda: CifarDenseNet(7, 4, 10), {"where": {"stages": [4]}},
        "no free site in stage 4: the stages are 1, 2, 3"),
    (cifar_resnet, {"where": {"last_of_stage": 0}},
        "no free site in stage 0: the stages are 1, 2, 3"),
    (cifar_resnet, {"where": {"last_of_stage": True}},
        "no free site in stage True: the stages are 1, 2, 3"),
    (layers(nn.Linear(3, 3)), {},
        r"Sequential has no free site: name the modules .*after=.*lcm\.models\.Site"),
    (filled(), {}, "ResNet has no free site"),
    (resnet18_with("__class__", type("Derived", (tv.resnet.BasicBlock,), {})), {},
        "layer3.0 is a Derived, which may compute something"),
    # as torch.utils.checkpoint is put around a block
    (resnet18_with("forward", torch.relu), {}, "layer3.0 is a BasicBlock, which may compute"),
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


fsdp = process_group()(lambda network: fully_shard(network, mesh=init_device_mesh("cpu", (1,))))


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def with_a_part(network, wrap):
    network.layer2 = wrap(network.layer2)
    return network


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": process_group()(nn.parallel.DistributedDataParallel),
    "FSDPModule": fsdp,
    "OptimizedModule": torch.compile,
    "compiled": compiled_in_place,
    "ScriptModule": lambda network: torch.jit.trace(network.eval(), images(64)),
    "layer2 is wrapped in FSDPModule": lambda network: with_a_part(network, fsdp),
    "layer2 is compiled": lambda network: with_a_part(network, compiled_in_place),
    "layer2 is wrapped in OptimizedModule": lambda network: with_a_part(network, torch.compile),
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
