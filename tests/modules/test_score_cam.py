"""Score-CAM against the loop of its authors' code."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from strangers import Calls, state
from torch import nn

from lcm.models import CifarDenseNet, CifarResNet, draw_weights
from lcm.score_cam import score_cam


def ending(network, end):
    """A network and what comes after its logits."""
    return Calls(lambda m, x: end(m.network(x)), network=network)


@pytest.fixture
def small():
    """Convolution, batch norm, ReLU: 10 maps of 6x5; one constant, one zero, one negative."""
    torch.manual_seed(0)
    conv, norm, fc = nn.Conv2d(3, 10, 3, stride=3), nn.BatchNorm2d(10), nn.Linear(10, 4)
    with torch.no_grad():
        conv.weight[:2] = 0
        conv.bias[:2] = torch.tensor([3.3, 0.0])
        norm.weight[2], norm.bias[2] = 0.1, -0.5  # negative everywhere
        fc.weight *= 5
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "drop": nn.Dropout(), "fc": fc}
    return nn.Sequential(OrderedDict(conv=conv, bn=norm, relu=nn.ReLU(), **head)).double()


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return drawn(3, 3, 18, 15)


CLASSES = [2, 0, 3]


# ---- one channel at a time, as published


def up(x, size):
    return F.interpolate(x[None, None], size=size, mode="bilinear")[0, 0]


def plain_heatmap(network, x, maps, c):
    """The loop of the authors' code."""
    heatmap = torch.zeros(x.shape[1:], dtype=x.dtype)
    for channel in maps:
        saliency = up(channel, x.shape[1:])
        if channel.max() == channel.min():
            continue
        mask = (saliency - saliency.min()) / (saliency.max() - saliency.min())
        heatmap += network((x * mask)[None]).softmax(1)[0, c] * saliency
    heatmap = heatmap.relu()
    return (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())


@torch.no_grad()
def assert_as_published(found, network, images, maps, classes):
    network.eval()
    expected = torch.stack(
        [plain_heatmap(network, *args) for args in zip(images, maps, classes, strict=True)]
    )
    assert (expected.amax((1, 2)) == 1).all()  # no heatmap is trivial
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8)
    logits = network(images)
    probability = logits.softmax(1)[range(len(images)), classes]
    assert torch.allclose(found.probability, probability, rtol=0, atol=1e-12)
    assert torch.equal(found.predicted, logits.argmax(1))
    assert found.classes.tolist() == list(classes)


@torch.no_grad()
def maps_of(network, images, layer):
    """The layer's output, with what follows in place."""
    seen = []
    network.eval()
    handle = network.get_submodule(layer).register_forward_hook(lambda _, x, y: seen.append(y))
    network(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_equals_one_channel_at_a_time(inplace, small, images):
    """Of a named layer's own output, without what follows in place."""
    small.relu.inplace = inplace
    with torch.no_grad():
        maps = small.eval().bn(small.conv(images))
    assert maps.amin() < 0
    found = score_cam(small, images, CLASSES, layer="bn")
    assert_as_published(found, small, images, maps, CLASSES)
    # Constant channels are left out: upsampled, they are uneven by rounding, which would be noise.
    assert up(maps[0, 0], (18, 15)).std() > 0
    assert (found.weights[:, :2] == 0).all()
    assert (found.weights[:, 2] != 0).all()


NETWORKS = {  # the last module before the pooling, and a network
    "stage3": CifarResNet(8, 10),
    # The last ReLU works in place on what the last batch norm made, as in torchvision's.
    "bn": CifarDenseNet(7, 6, 10),
    "features": torchvision.models.DenseNet(4, (1, 2, 2), 8, num_classes=5),
}


@pytest.mark.parametrize("last", NETWORKS)
def test_finds_the_last_map_and_equals_one_channel_at_a_time(last):
    network, images = NETWORKS[last], drawn(1, 3, 32, 32)
    draw_weights(network, 0)
    maps = maps_of(network.double(), images, last)
    assert maps.amin() == 0  # after the last ReLU
    found = score_cam(network, images)  # of the predicted class
    assert_as_published(found, network, images, maps, found.predicted.tolist())


def test_one_logit_is_that_of_the_second_of_two_classes(small, images):
    """The reference is the same network with the logits 0 and z, written out."""
    one = ending(small, lambda z: z[:, 1:2])
    two = ending(small, lambda z: F.pad(z[:, 1:2], (1, 0)))
    found = score_cam(one, images, [0, 1, 1], layer="network.bn")
    assert_as_published(found, two, images, maps_of(small, images, "bn"), [0, 1, 1])
    assert (found.weights[:, 3:] % 1 != 0).all()  # neither 0 nor 1


# ---- properties


def test_the_chunk_changes_nothing_and_bounds_the_batch(small, images):
    batches = []
    small.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    runs = []
    for chunk in (1, 7, 1000):
        batches.clear()
        runs.append(score_cam(small, images, CLASSES, layer="bn", chunk=chunk))
        assert batches[:2] == [3, 1]  # the images; one of them, for the last operation
        assert sum(batches[2:]) == 8 * 3  # 2 of the 10 channels are constant
        assert max(batches[2:]) == min(chunk, 24)
    for other in runs[1:]:
        assert torch.allclose(other.heatmap, runs[0].heatmap, rtol=0, atol=1e-13)


def test_no_evidence_is_zero_and_never_nan(small, images):
    with torch.no_grad():
        small.bn.bias.fill_(-50)
        negative = score_cam(small, images, CLASSES, layer="bn")
        small.conv.weight.zero_()
        constant = score_cam(small, images, CLASSES, layer="bn")
    for cam in (negative, constant):
        assert torch.equal(cam.heatmap, torch.zeros_like(cam.heatmap))
        assert cam.weights.isfinite().all() and cam.probability.isfinite().all()
    assert (negative.weights[:, 3:] != 0).all()


PROBABILITIES = {
    "softmax": lambda z: z.softmax(1),
    "module": nn.Softmax(1),
    "exp": lambda z: z.log_softmax(1).exp(),
    "sigmoid": torch.sigmoid,
    "in place": lambda z: z.sigmoid_(),
    "hard": F.hardsigmoid,
    "one sigmoid": lambda z: z[:, :1].sigmoid(),
    "one softmax": lambda z: z[:, :1].softmax(1),
    "cast": lambda z: z.softmax(1).float(),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("end", PROBABILITIES)
def test_refuses_a_network_that_ends_in_probabilities(end, frozen, small, images):
    small.requires_grad_(not frozen)
    for grad in (torch.enable_grad(), torch.inference_mode()):
        with grad, pytest.raises(ValueError, match="without its last softmax or sigmoid"):
            score_cam(ending(small, PROBABILITIES[end]), images, layer="network.bn")


LOGITS = {
    "between 0 and 1": lambda z: z[:, :2].abs() / (1 + z[:, :2].abs()),
    "a sigmoid inside": lambda z: z * z.sigmoid(),
    "log-softmax": lambda z: z.log_softmax(1),
    "one between 0 and 1": lambda z: 0.5 + 0.1 * z[:, :1].tanh(),
}


@pytest.mark.parametrize("end", LOGITS)
def test_takes_logits_that_look_like_probabilities(end, small, images):
    found = score_cam(ending(small, LOGITS[end]), images, [0, 1, 1], layer="network.bn")
    with torch.no_grad():
        z = LOGITS[end](small.eval()(images))
    z = z if z.shape[1] > 1 else F.pad(z, (1, 0))
    expected = z.softmax(1)[range(3), [0, 1, 1]]
    assert torch.allclose(found.probability, expected, rtol=0, atol=1e-12)


def test_tokens_are_no_maps(images):
    read = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.Flatten(2), nn.Flatten(), nn.Linear(416, 5)
    ).double()
    with pytest.raises(ValueError, match="the last layer must be a map"):
        score_cam(read, images)
    channels_last = nn.Sequential(read[0], Calls(lambda m, x: x.movedim(1, -1)), *read[2:])
    with pytest.raises(ValueError, match="the last layer must be a map"):
        score_cam(channels_last, images)


def test_leaves_the_network_as_it_was(small, images):
    small.train()
    small.bn.eval()
    before = state(small)
    score_cam(small, images, layer="conv")
    assert state(small) == before and torch.is_grad_enabled()
    assert not small.conv._forward_hooks and small.conv.weight.grad is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": "cnv"}, "no layer 'cnv'; nearest: conv"),
        ({"layer": "fc"}, r"output of fc must be a map \(N, C, h, w\)"),
        ({"images": torch.full((3, 3, 18, 15), torch.nan, dtype=torch.float64)}, "not finite"),
        ({"classes": [1, 2]}, "out of bounds|shape|size"),  # in the words of torch
        ({"classes": [0, 1, 4]}, "out of bounds"),
        ({"classes": [0, -1, 1]}, "out of bounds"),
    ],
)
def test_what_does_not_fit_is_an_error(change, words, small, images):
    with pytest.raises((ValueError, IndexError, RuntimeError), match=words):
        score_cam(small, **{"images": images, "classes": CLASSES} | change)
