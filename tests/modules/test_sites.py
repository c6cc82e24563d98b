"""Sites: where they are in each network, how they are filled, and that they change nothing while
they are empty."""

import copy
import re
from collections import Counter

import pytest
import torch
import torchvision
from strangers import Scale, images, se
from tiny import ROOT
from torch import nn

from lcm import build_network, fill_sites
from lcm.models import CifarDenseNet, CifarResNet, Site, add_sites, sites

tv = torchvision.models


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet20", {(1, 16): 3, (2, 32): 3, (3, 64): 3}),
        ("resnet32", {(1, 16): 5, (2, 32): 5, (3, 64): 5}),
        ("resnet50_cifar", {(1, 16): 8, (2, 32): 8, (3, 64): 8}),
        ("densenet40", {(1, 12): 12, (2, 12): 12, (3, 12): 12}),
        ("densenet64", {(1, 12): 20, (2, 12): 20, (3, 12): 20}),
        ("densenet100", {(1, 12): 32, (2, 12): 32, (3, 12): 32}),
        ("densenet121", {(1, 32): 6, (2, 32): 12, (3, 32): 24, (4, 32): 16}),
        ("resnet50", {(1, 256): 3, (2, 512): 4, (3, 1024): 6, (4, 2048): 3}),
        ("resnext50", {(1, 256): 3, (2, 512): 4, (3, 1024): 6, (4, 2048): 3}),
    ],
)
def test_sites_of_each_network(model, expected):
    with torch.device("meta"):
        found = sites(build_network(model))
    assert Counter((site.stage, site.channels) for *_, site in found) == expected


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


class Nothing(nn.Module):
    def forward(self, x):
        return x * 0


def emptied(network):
    """The network with modules at its sites that let nothing pass."""
    return fill_sites(network, lambda _: Nothing())


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


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_empty_sites_change_nothing_in_torchvisions_networks(name):
    network = getattr(torchvision.models, name)(num_classes=5)
    with_sites = add_sites(copy.deepcopy(network))
    assert sites(with_sites)
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        y, y_ = network.train(mode)(x), with_sites.train(mode)(x)
        assert torch.equal(y, y_)
    y.sum().backward(), y_.sum().backward()
    for parameter, parameter_ in zip(network.parameters(), with_sites.parameters(), strict=True):
        assert torch.equal(parameter.grad, parameter_.grad)
    assert list(with_sites.state_dict()) == list(network.state_dict())


def test_one_file_imports_torchvision():
    """It takes a second: no network for CIFAR waits for it."""
    files = (ROOT / "lcm" / "models").glob("*.py")
    pattern = re.compile(r"^(import|from) (torchvision|lcm\.models\.imagenet)", re.M)
    assert [file.name for file in files if pattern.search(file.read_text())] == ["imagenet.py"]


def without_a_stage():
    network = tv.resnet18()
    network.layer4, network.fc = nn.Identity(), nn.Linear(256, 10)
    return network


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tv.DenseNet(8, (2, 3, 1)), [2, 3, 1]),
        (lambda: tv.DenseNet(8, (1, 1, 2, 1, 1), memory_efficient=True), [1, 1, 2, 1, 1]),
        (lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 2, 1, 1],
            norm_layer=lambda c: nn.GroupNorm(2, c)), [1, 2, 1, 1]),
        (without_a_stage, [2, 2, 2]),
        (lambda: tv.segmentation.fcn_resnet50(weights_backbone=None), [3, 4, 6, 3]),
    ],
    ids=["three blocks", "five blocks", "group norms", "without a stage", "segmentation"],
)  # fmt: skip
def test_any_number_of_stages(make, expected):
    network = make().eval()
    x = images(64)
    y, before = network(x), list(network.state_dict())
    found = [place.module.stage for place in sites(add_sites(network))]
    assert [found.count(stage + 1) for stage in range(len(expected))] == expected
    torch.testing.assert_close(network(x), y, rtol=0, atol=0)
    assert list(network.state_dict()) == before
    fill_sites(network, se)
    network(x)


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
