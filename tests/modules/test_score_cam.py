"""Score-CAM against plain loops and the libraries it names, and the script that draws Figure 4."""

import functools
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lcm.models import CifarDenseNet, CifarResNet, draw_weights
from lcm.models.build import build_network
from lcm.score_cam import VARIANTS, Variant, score_cam

ROOT = Path(__file__).parents[2]


class Small(nn.Module):
    """Convolution, batch norm, no ReLU: 10 maps of 6x5, of which one is a constant, one zero and one negative everywhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, stride=3)
        self.bn = nn.BatchNorm2d(10)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.bn(self.conv(x))).mean((2, 3))))


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = Small().double()
    with torch.no_grad():
        network.conv.weight[:2] = 0
        network.conv.bias[:2] = torch.tensor([0.3, 0.0])
        network.bn.weight[2], network.bn.bias[2] = 0.1, -0.5  # negative everywhere
        network.fc.weight *= 5
    return network


@pytest.fixture
def images():
    return torch.randn(3, 3, 18, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CLASSES = [2, 0, 3]


# --------------------------------------------------------------------------------- one channel at a time, as published


def rescaled(heatmap):
    low, high = heatmap.min(), heatmap.max()
    return (heatmap - low) / (high - low) if high > low else torch.zeros_like(heatmap)


def up(x, size, **how):
    return F.interpolate(x[None, None], size=size, mode="bilinear", **how)[0, 0]


def plain_official(network, x, maps, c):
    """The loop of the authors' code."""
    heatmap = torch.zeros(x.shape[1:], dtype=x.dtype)
    for channel in maps:
        saliency = up(channel, x.shape[1:])
        if channel.max() == channel.min():
            continue
        mask = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        heatmap += network((x * mask)[None]).softmax(1)[0, c] * saliency
    return rescaled(heatmap.relu())


def plain_increase(network, x, maps, c, black=None):
    """Definitions 2 and 3 of the paper's second version."""
    heatmap = torch.zeros_like(maps[0])
    base = network(torch.zeros_like(x)[None] if black is None else black[None]).softmax(1)[0, c]
    for channel in maps:
        if channel.max() > channel.min():
            masked = x * rescaled(up(channel, x.shape[1:]))
            heatmap += (network(masked[None]).softmax(1)[0, c] - base) * channel
    return rescaled(up(heatmap.relu(), x.shape[1:]))


def plain_paper(network, x, maps, c):
    """Algorithm 1 of the paper's second version, with the score of a black image that its softmax does not see."""
    base = network(torch.zeros_like(x)[None]).softmax(1)[0, c]
    used = [channel for channel in maps if channel.max() > channel.min()]
    scores = [network((x * rescaled(up(a, x.shape[1:])))[None]).softmax(1)[0, c] - base for a in used]
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
    heatmap = sum(w * channel for w, channel in zip(weights, used, strict=True))
    return rescaled(up(heatmap.relu(), x.shape[1:]))


def plain_grad_cam(network, x, maps, c):
    scores = []
    for channel in maps:
        mask = up(channel, x.shape[1:], align_corners=True)
        if channel.max() == channel.min():
            mask = torch.full_like(mask, channel.min())  # without upsampling's rounding
        mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
        scores.append(network((x * mask)[None])[0, c])
    heatmap = (torch.stack(scores).softmax(0)[:, None, None] * maps).sum(0)
    return rescaled(up(heatmap.relu(), x.shape[1:]))


def plain_torchcam(network, x, maps, c):
    scores = []
    for channel in maps:
        mask = channel - channel.min()
        mask = up(mask / (mask.max() + 1e-8), x.shape[1:])
        scores.append(network((x * mask)[None])[0, c] - network(x[None])[0, c])
    heatmap = (torch.stack(scores).softmax(0)[:, None, None] * maps).sum(0)
    return rescaled(up(heatmap.relu(), x.shape[1:]))


PLAIN = {
    "official": plain_official,
    "increase": plain_increase,
    "paper": plain_paper,
    "grad_cam": plain_grad_cam,
    "torchcam": plain_torchcam,
}


@torch.no_grad()
def plain(variant, network, images, maps, classes, **extra):
    network.eval()
    return torch.stack([PLAIN[variant](network, *args, **extra) for args in zip(images, maps, classes, strict=True)])


def test_every_variant_has_a_plain_loop():
    assert PLAIN.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_one_channel_at_a_time(variant, small, images):
    with torch.no_grad():
        maps = small.eval().bn(small.conv(images))  # (3, 10, 6, 5)
    expected = plain(variant, small, images, maps, CLASSES)
    found = score_cam(small, images, CLASSES, variant=variant, layer="bn")
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8)
    assert (expected.amax((1, 2)) == 1).all()  # no heatmap is trivial
    assert found.heatmap.amin() >= 0 and found.heatmap.amax() == 1
    assert torch.allclose(found.probability, small(images).softmax(1)[range(3), CLASSES], rtol=0, atol=1e-12)
    if VARIANTS[variant].channel_softmax:
        assert torch.allclose(found.weights.sum(1), torch.ones(3, dtype=torch.float64))
    left_out = VARIANTS[variant].epsilon == 0
    assert ((found.weights[:, :2] == 0) == left_out).all() and (found.weights[:, 2] != 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [CifarResNet(8, 10), CifarDenseNet(7, 6, 10)], ids=["resnet", "densenet"])
def test_equals_one_channel_at_a_time_on_cifar_networks(network, variant):
    draw_weights(network, 0)
    network.double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pooled = []
    handle = network.pool.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0].clone()))
    with torch.no_grad():
        network(images)
    handle.remove()
    assert pooled[0].amin() == 0  # after the last ReLU
    found = score_cam(network, images, variant=variant)  # of the predicted class, at the layer that it finds by itself
    expected = plain(variant, network, images, pooled[0], found.classes)
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8) and expected.amax() == 1


def test_increase_takes_another_baseline(small, images):
    black = torch.full((3, 18, 15), -2.0, dtype=torch.float64)
    with torch.no_grad():
        maps = small.eval().bn(small.conv(images))
    expected = plain("increase", small, images, maps, CLASSES, black=black)
    found = score_cam(small, images, CLASSES, variant="increase", layer="bn", baseline=black)
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8)
    assert not torch.allclose(found.heatmap, score_cam(small, images, CLASSES, variant="increase", layer="bn").heatmap)


# ------------------------------------------------------------------------------------------------ the other libraries


def published_grad_cam(network, layer, images, target):
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = __import__("pytorch_grad_cam.utils.model_targets", fromlist=["_"])
    with grad_cam.ScoreCAM(model=network, target_layers=[layer]) as method:
        return torch.from_numpy(method(images, targets=[getattr(targets, target)(c) for c in CLASSES]))


@pytest.mark.parametrize("target", ["ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget"])
def test_agrees_with_pytorch_grad_cam(target, images):
    torch.manual_seed(3)
    network, images = Small().eval(), images.float()
    with torch.no_grad():
        network.fc.weight *= 5
    published = published_grad_cam(network, network.bn, images, target)
    score = "logit" if target == "ClassifierOutputTarget" else "probability"
    variant = Variant(score=score, channel_softmax=True, epsilon=1e-8, align_corners=True)
    assert score == "probability" or variant == VARIANTS["grad_cam"]
    found = score_cam(network, images, CLASSES, variant=variant, layer=network.bn)
    assert torch.allclose(found.heatmap, published, rtol=0, atol=1e-5)
    assert not torch.allclose(found.heatmap, score_cam(network, images, CLASSES, layer=network.bn).heatmap, atol=1e-2)


def test_agrees_with_torchcam(small, images):
    methods = pytest.importorskip("torchcam.methods")
    with methods.ScoreCAM(small.eval(), "bn") as method, torch.no_grad():
        small(images)
        (published,) = method(CLASSES)
    expected = torch.stack([rescaled(up(heatmap, images.shape[2:])) for heatmap in published])
    found = score_cam(small, images, CLASSES, variant="torchcam", layer="bn")
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-7)


# --------------------------------------------------------------------------------------------------------- properties


class Colours(nn.Module):
    """Three maps, the red, green and blue of 4x4 squares; the class of a colour is certain if it is there at all."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.fc = nn.Linear(3, 4)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.fc.weight.copy_(torch.cat([2000 * torch.eye(3), torch.zeros(1, 3)]))
            self.fc.bias.copy_(torch.tensor([-40.0, -40, -40, 0]))

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.fixture
def spots():
    """An image with a spot of each colour, far enough from the others, and the three maps that `Colours` makes of it."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    places = [(slice(0, 8), slice(4, 12)), (slice(20, 32), slice(0, 8)), (slice(16, 28), slice(20, 28))]
    for colour, (rows, columns) in enumerate(places):
        image[0, colour, rows, columns] = 1
    image[0, 1, 24:32, 0:4] = 0.5
    return image, Colours().double().conv(image).detach()[0]


@pytest.mark.parametrize("variant", ["official", "increase", "grad_cam", "torchcam"])
@pytest.mark.parametrize("colour", [0, 1, 2])
def test_a_class_that_reads_one_channel_has_that_channels_map(variant, colour, spots):
    """The masks of the other colours hide this one, so that its own channel alone has a weight."""
    image, maps = spots
    found = score_cam(Colours().double(), image, [colour], variant=variant)
    assert torch.allclose(found.heatmap[0], rescaled(up(maps[colour], (32, 32))), rtol=0, atol=1e-12)


def test_the_papers_weights_differ_at_most_by_the_factor_e(spots):
    """Algorithm 1 takes a softmax of probabilities: where one channel decides the class, all others still weigh 1/e of it."""
    weights = score_cam(Colours().double(), spots[0], [1], variant="paper").weights[0]
    expected = torch.tensor([1, np.e, 1], dtype=torch.float64) / (2 + np.e)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chunk_changes_nothing_and_bounds_the_batch(variant, small, images):
    batches = []
    small.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    runs = []
    for chunk in (1, 7, 1000):
        batches.clear()
        runs.append(score_cam(small, images, CLASSES, variant=variant, layer="bn", chunk=chunk))
        extra = [1] if VARIANTS[variant].epsilon or VARIANTS[variant].increase else []
        assert batches[0] == 3 and sum(batches[1:]) == 8 * 3 + sum(extra)  # 2 of the 10 channels are constant
        assert max(batches[1:]) == min(chunk, 24)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13)
    one_by_one = [
        score_cam(small, images[i : i + 1], CLASSES[i : i + 1], variant=variant, layer="bn") for i in range(3)
    ]
    assert torch.allclose(torch.cat([cam.heatmap for cam in one_by_one]), runs[0].heatmap, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_evidence_is_zero_and_never_nan(variant, small, images):
    with torch.no_grad():
        small.bn.bias.fill_(-50)
        negative = score_cam(small, images, CLASSES, variant=variant, layer="bn")
        small.conv.weight.zero_()
        constant = score_cam(small, images, CLASSES, variant=variant, layer="bn")
        small.bn.bias.zero_().add_(1)
        positive = score_cam(small, images, CLASSES, variant=variant, layer="bn")
    for cam in (negative, constant, positive):
        assert torch.equal(cam.heatmap, torch.zeros_like(cam.heatmap))
        assert cam.weights.isfinite().all() and cam.probability.isfinite().all()
    assert variant == "increase" or (negative.weights[:, 3:] != 0).all()


@pytest.mark.parametrize("value", [0.1, 3.7])
def test_a_constant_channel_does_not_become_noise(value):
    """Upsampled, a constant map is uneven by rounding; scaled to [0, 1] that would be a mask of noise."""
    channel = torch.full((8, 8), value)
    assert up(channel, (32, 32)).std() > 0
    network = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].bias[0] = value
    images = torch.randn(1, 3, 32, 32)
    assert score_cam(network, images, [0]).weights[0, 0] == 0
    zero = score_cam(network, images, [0], variant=Variant(score="logit", epsilon=1e-8)).weights[0, 0]
    assert torch.allclose(zero, network(torch.zeros_like(images))[0, 0])


def test_leaves_the_network_as_it_was(small, images):
    small.train()
    small.bn.eval()
    small.fc.weight.requires_grad_(False)
    small(images).sum().backward()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    gradient, random = small.conv.weight.grad.clone(), torch.get_rng_state()
    score_cam(small, images, layer="conv")
    score_cam(small, images)
    with pytest.raises(RuntimeError):
        score_cam(small, images[:, :2], CLASSES)
    assert small.training and small.drop.training and small.conv.training and not small.bn.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert torch.equal(small.conv.weight.grad, gradient)
    assert [p.requires_grad for p in small.parameters()] == [True, True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())


def test_explains_the_predicted_class_by_default(small, images):
    cam = score_cam(small, images, layer="bn")
    assert torch.equal(cam.classes, small.eval()(images).argmax(1)) and torch.equal(cam.classes, cam.predicted)
    assert torch.equal(cam.heatmap, score_cam(small, images, cam.classes, layer="bn").heatmap)


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), "layer4", 512


def torchvision_densenet():
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=4, block_config=(1, 2, 2), num_init_features=8, num_classes=5), "features", 15


@pytest.mark.parametrize("make", [torchvision_resnet, torchvision_densenet])
def test_finds_the_last_stage_of_torchvisions_networks(make):
    """torchvision's DenseNet applies its last ReLU in place to what the last batch norm made."""
    network, last, channels = make()
    draw_weights(network, 0)
    network.eval()
    images = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    seen = []
    handle = network.get_submodule(last).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    handle.remove()
    cam = score_cam(network, images, [1])
    assert cam.weights.shape == (1, channels) and seen[0].shape[1] == channels
    assert seen[0].min() == 0  # rectified
    heatmap = up(torch.einsum("c,chw->hw", cam.weights[0], seen[0][0]), (40, 40)).relu()
    assert torch.allclose(cam.heatmap[0], rescaled(heatmap), atol=1e-5) and heatmap.max() > 0


def test_a_named_layer_is_its_own_output_without_what_follows_in_place():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    maps = network[0](images).detach()
    assert maps.amin() < 0
    expected = plain("official", network, images, maps, [0, 1])
    assert torch.allclose(score_cam(network, images, [0, 1], layer="0").heatmap, expected, atol=1e-12)
    assert torch.allclose(score_cam(network, images, [0, 1], layer=network[0]).heatmap, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "offical"}, "no variant 'offical'.*official, increase"),
        ({"layer": "cnv"}, "no layer 'cnv'; the nearest is 'conv'"),
        ({"layer": nn.Conv2d(3, 3, 1)}, "Conv2d is not a layer of this network"),
        ({"layer": "fc"}, r"output must be \(N, C, h, w\), not \(3, 4\)"),
        ({"classes": [1, 2]}, "one index for each of the 3 images"),
        ({"classes": [0, 1, 4]}, r"not all in 0\.\.3"),
        ({"classes": [0, -1, 1]}, r"not all in 0\.\.3"),
        ({"chunk": 0}, "at least 1, not 0"),
        ({"images": torch.zeros(3, 18, 15)}, r"must be \(N, 3, H, W\)"),
        ({"images": torch.full((3, 3, 18, 15), torch.nan, dtype=torch.float64)}, "not finite"),
    ],
)
def test_says_what_does_not_fit(change, words, small, images):
    arguments = {"images": images, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=words):
        score_cam(small, **arguments)
    with pytest.raises(ValueError, match="'probability' or 'logit'"):
        Variant(score="odds")


def test_is_faster_than_one_channel_at_a_time():
    """Processor time of this one thread, so that other work on the machine counts little. The factor is 4 to 6 here."""
    network = build_network("resnet20", "lcm2", seed=0).eval()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        maps = network.stage3(network.stage2(network.stage1(F.relu(network.bn(network.conv(image))))))

    def seconds(call, times):
        best = float("inf")
        for _ in range(times):
            start = time.process_time()
            result = call()
            best = min(best, time.process_time() - start)
        return best, result

    batched, cam = seconds(lambda: score_cam(network, image, [3]), 3)
    singly, expected = seconds(lambda: plain("official", network, image, maps, [3]), 1)
    assert torch.allclose(cam.heatmap, expected, atol=1e-4)
    assert singly / batched > 3


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("score_cam")  # of scripts/, where pytest looks for modules too


@functools.cache
def fingerprint(data):
    from hydra.utils import instantiate

    from lcm.config.options import load

    return instantiate(load("data", data)).fingerprint


def make_run(runs, attention, *, seed=0, layers=8, end="2026-01-01T00:00:00+00:00", state="finished", data="digits"):
    """A run directory as train.py leaves it, of an untrained network."""
    from lcm.config.options import plain as compose
    from lcm.runs.directory import run_name
    from lcm.runs.state import new_state, write_state
    from lcm.training import checkpoint

    names = {"data": data, "model": "resnet20", "attention": attention, "schedule": "digits"}
    config = compose({group: {"name": name} for group, name in names.items()})
    config["seed"], config["model"]["layers"] = seed, layers
    directory = runs / run_name(config)
    directory.mkdir(parents=True)
    network = build_network(config["model"], config["attention"], num_classes=10, seed=seed)
    checkpoint.save(directory, {"model": network.state_dict()})
    facts = {"data_fingerprint": fingerprint(data)}
    result = {"epoch": 8, "test_top1": 10.0, "test_top5": 50.0, "best_test_top1": 10.0, "best_epoch": 8}
    result = result if state == "finished" else None
    write_state(directory, new_state(config, **facts) | {"state": state, "end": end, "result": result})
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for attention in ("none", "se", "lcm2"):
        make_run(folder, attention)
    return folder


def test_draws_figure_4_the_same_twice(script, runs, tmp_path, capsys):
    from PIL import Image

    for name in ("a", "b"):
        script.main(["--runs-root", str(runs), "--index", "3", "14", "--out", str(tmp_path / "deep" / name)])
    for kind in ("png", "svg", "json"):
        a, b = ((tmp_path / "deep" / f"{name}.{kind}").read_bytes() for name in "ab")
        assert a == b
    picture = np.array(Image.open(tmp_path / "deep" / "a.png").convert("RGB"))
    assert picture.shape[0] > 800 and picture.std() > 20 and (picture[0] == 255).all()
    svg = (tmp_path / "deep" / "a.svg").read_text()
    assert svg.count("<image") == 2 * (1 + 2 * 3) + 1  # a colour bar
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg)

    facts = json.loads((tmp_path / "deep" / "a.json").read_text())
    assert [n["title"] for n in facts["networks"]] == ["ResNet-20", "ResNet-20 + SE", "ResNet-20 + LCM2"]
    assert [i["image"] for i in facts["images"]] == [3, 14]
    out = capsys.readouterr().out
    assert all(f"{p:.4f}" in out for image in facts["images"] for p in image["P"])


def test_P_is_the_softmax_probability_of_the_true_class(script, runs, tmp_path):
    from lcm.data import Digits
    from lcm.training.checkpoint import load_model_weights

    (directory,) = (runs / "digits/resnet20/se").iterdir()
    script.main([str(directory / "checkpoint.pt"), "--out", str(tmp_path / "f.svg")])
    facts = json.loads((tmp_path / "f.json").read_text())
    data = Digits()
    assert [image["image"] for image in facts["images"]] == [0, 88, 177, 266]
    network = build_network("resnet20", "se", num_classes=10, layers=8).eval()
    network.load_state_dict(load_model_weights(directory))
    for image in facts["images"]:
        pixels, label = data.test(1).resident.images[image["image"]], data.test(1).resident.labels[image["image"]]
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        x = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        probabilities = network(x).softmax(1)[0]
        assert image["class"] == str(int(label)) and image["predicted"] == [str(int(probabilities.argmax()))]
        assert image["P"][0] == pytest.approx(probabilities[label].item(), abs=1e-5)


def test_image_files_are_what_the_same_test_image_is(script, runs, tmp_path):
    from PIL import Image

    from lcm.data import Digits

    resident = Digits().test(1).resident
    file = tmp_path / "digit.png"
    Image.fromarray(resident.images[5].numpy()).save(file)
    (directory,) = (runs / "digits/resnet20/lcm2").iterdir()
    name = str(int(resident.labels[5]))
    script.main(
        [str(directory), "--images", str(file), "--classes", name, "--index", "5", "--out", str(tmp_path / "f")]
    )
    a, b = json.loads((tmp_path / "f.json").read_text())["images"]
    assert a["image"] == 5 and b["image"] == str(file) and a["class"] == b["class"] == name and a["P"] == b["P"]


def test_a_photograph_is_resized_and_cut_to_its_centre(script, tmp_path):
    from PIL import Image

    photograph = np.zeros((300, 500, 3), np.uint8)
    photograph[:, 150:350] = (200, 100, 50)
    Image.fromarray(photograph).save(tmp_path / "p.png")
    picture = script.read_picture(tmp_path / "p.png", 224)  # 427x256, then 101..325 of it
    assert picture.shape == (224, 224, 3) and picture.dtype == np.uint8
    assert (picture[:, 30:190] == (200, 100, 50)).all() and not picture[:, :24].any() and not picture[:, 202:].any()
    assert script.read_picture(tmp_path / "p.png", 32).shape == (32, 32, 3)


def test_takes_the_newest_runs_that_differ_in_the_attention_alone(script, tmp_path):
    make_run(tmp_path, "none", seed=0, end="2026-01-01T00:00:00+00:00")
    make_run(tmp_path, "se", seed=0, end="2026-01-02T00:00:00+00:00")
    make_run(tmp_path, "none", seed=1, end="2026-01-03T00:00:00+00:00")
    make_run(tmp_path, "se", seed=1, end="2026-01-03T00:00:00+00:00")
    make_run(tmp_path, "none", seed=2, end="2026-01-04T00:00:00+00:00")
    make_run(tmp_path, "se", seed=2, layers=14, end="2026-01-04T00:00:00+00:00")  # another network
    make_run(tmp_path, "none", seed=3, end="2026-01-05T00:00:00+00:00")
    make_run(tmp_path, "se", seed=3, state="stopped", end=None)

    def found(**choice):
        arguments = {"data": "digits", "model": "resnet20", "attentions": ["none", "se"], "seed": None} | choice
        return [(state["attention"], state["seed"]) for _, state in script.find_runs(tmp_path, **arguments)]

    assert found() == [("none", 1), ("se", 1)]
    assert found(seed=0) == [("none", 0), ("se", 0)]
    with pytest.raises(script.UserError, match=r"(?s)none: seed 2, .*'model.layers': 8.*se: seed 2, .*14"):
        found(seed=2)
    with pytest.raises(script.UserError, match=r"no finished run of seed 3 with attention se: train it .*seed=3"):
        found(seed=3)
    titles = [run.title for run in script.name_runs(script.find_runs(tmp_path, "digits", "resnet20", ["se", "se"], 1))]
    assert titles == ["ResNet-20 + SE"]


def test_titles_tell_seeds_apart_where_needed(script):
    states = [(None, {"model": "resnet50", "attention": "gc", "seed": seed}) for seed in (4, 7)]
    assert [run.title for run in script.name_runs(states)] == ["ResNet-50 + GC, seed 4", "ResNet-50 + GC, seed 7"]


def test_runs_as_a_program_from_any_folder(tmp_path):
    program = [sys.executable, str(ROOT / "scripts" / "score_cam.py")]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: runs/digits/resnet20 has no finished run with attention none, se, lcm2")
    assert ended.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def broken(runs, tmp_path_factory):
    """Runs, each with a fault, and files that are no images; {} in an argument of a fault is this folder."""
    folder = tmp_path_factory.mktemp("broken")
    make_run(folder / "stopped", "se", state="stopped", end=None)
    other = make_run(folder / "copy", "se")
    state = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(state | {"data_fingerprint": "0" * 64}))
    unfit = make_run(folder / "unfit", "lcm2")
    state = json.loads((unfit / "run.json").read_text())
    state["config"]["model"]["layers"] = 14
    (unfit / "run.json").write_text(json.dumps(state))
    flipped = make_run(folder / "flipped", "none") / "checkpoint.pt"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (folder / "text.png").write_text("not an image")
    for name in ("stopped", "copy", "unfit", "flipped"):
        (directory,) = (folder / name).glob("digits/resnet20/*/seed0-*")
        (folder / f"{name}-run").symlink_to(directory)
    (folder / "good-run").symlink_to(next((runs / "digits/resnet20/none").iterdir()))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}/nothing"], "{}/nothing is no run: name a directory that holds run.json"),
        (["{}/stopped-run"], "{}/stopped-run is not finished, its state is 'stopped'"),
        (["{}/copy-run"], "was trained on another copy of digits"),
        (["{}/unfit-run"], "its weights do not fit the network of its run.json"),
        (["{}/flipped-run"], "its checksum does not match"),
        (["{}/good-run", "--layer", "stage4"], "no layer 'stage4'; the nearest is 'stage3'"),
        (["{}/good-run", "--index", "355"], "--index 355: the test images of digits are 0 to 354"),
        (["{}/good-run", "--index", "-1"], "--index -1: the test images"),
        (["{}/good-run", "--images", "{}/text.png", "--classes", "3"], "{}/text.png: not readable as an image"),
        (["{}/good-run", "--images", "{}/none.png", "--classes", "3"], "{}/none.png: no such file"),
        (["{}/good-run", "--images", "{}/text.png"], "1 files, --classes 0 classes"),
        (["{}/good-run", "--images", "{}/text.png", "--classes", "ten"], "--classes ten: digits has no such class"),
        (["{}/good-run", "--images", "{}/text.png", "--classes", "10"], "--classes 10: digits has no such class"),
        (["{}/good-run", "--chunk", "0"], "--chunk 0: must be at least 1"),
        (["{}/good-run", "--out", "{}/text.png/figure"], "cannot make the folder"),
        (["{}/good-run", "--device", "cuda:99"], "device=cuda:99"),
        (["--runs-root", "{}/empty"], "has no finished run with attention none, se, lcm2: train it (python train.py"),
        (["--runs-root", "{}/empty", "--attention", "lcm3"], "attention=lcm3: no such attention"),
        (["--runs-root", "{}/empty", "--model", "resnt20"], "nearest: resnet20"),
    ],
)
def test_one_message_for_each_fault(arguments, words, script, broken, capsys):
    arguments = [argument.format(broken) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(broken / "figure")]
    with pytest.raises(SystemExit) as ended:
        script.main(arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and words.format(broken) in message and "Traceback" not in message
    assert not list(broken.glob("figure*"))
