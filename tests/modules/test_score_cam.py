"""Score-CAM against the loop of its authors' code."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from plain import digest
from torch import nn

from lcm.models import CifarDenseNet, CifarResNet, draw_weights
from lcm.score_cam import score_cam


class Small(nn.Module):
    """Convolution, batch norm, no ReLU: 10 maps of 6x5; one constant, one zero, one negative."""

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
    return torch.randn(
        3, 3, 18, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


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
def plain(network, images, maps, classes):
    network.eval()
    return torch.stack(
        [plain_heatmap(network, *args) for args in zip(images, maps, classes, strict=True)]
    )


def test_equals_one_channel_at_a_time(small, images):
    with torch.no_grad():
        maps = small.eval().bn(small.conv(images))  # (3, 10, 6, 5)
    expected = plain(small, images, maps, CLASSES)
    found = score_cam(small, images, CLASSES, layer="bn")
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8)
    assert (expected.amax((1, 2)) == 1).all()  # no heatmap is trivial
    assert found.heatmap.amin() >= 0 and found.heatmap.amax() == 1
    assert torch.allclose(
        found.probability, small(images).softmax(1)[range(3), CLASSES], rtol=0, atol=1e-12
    )
    assert (found.weights[:, :2] == 0).all() and (
        found.weights[:, 2] != 0
    ).all()  # constant channels are left out


NETWORKS = {  # the last module before the pooling, and a network
    "stage3": CifarResNet(8, 10),
    "bn": CifarDenseNet(
        7, 6, 10
    ),  # the last ReLU works in place on what the last batch norm made, as in torchvision's
    "features": torchvision.models.DenseNet(4, (1, 2, 2), 8, num_classes=5),
}


@pytest.mark.parametrize("last", NETWORKS)
def test_finds_the_last_map_and_equals_one_channel_at_a_time(last):
    network, seen = NETWORKS[last], []
    draw_weights(network, 0)
    network.double().eval()
    images = torch.randn(
        1, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    handle = network.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    with torch.no_grad():
        logits = network(images)
    handle.remove()
    assert seen[0].amin() == 0  # after the last ReLU
    found = score_cam(network, images)  # of the predicted class
    assert torch.equal(found.classes, found.predicted) and torch.equal(
        found.classes, logits.argmax(1)
    )
    expected = plain(network, images, seen[0], found.classes)
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8) and expected.amax() == 1


def test_a_named_layer_is_its_own_output_without_what_follows_in_place():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    maps = network[0](images).detach()
    assert maps.amin() < 0
    expected = plain(network, images, maps, [0, 1])
    assert torch.allclose(
        score_cam(network, images, [0, 1], layer="0").heatmap, expected, atol=1e-12
    )


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
        for a, b in zip(runs[0], other, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-13)


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


def test_a_constant_channel_does_not_become_noise():
    """Upsampled, a constant map is uneven by rounding; scaled to [0, 1] that would be noise."""
    assert up(torch.full((8, 8), 0.1), (32, 32)).std() > 0
    network = nn.Sequential(
        nn.Conv2d(3, 2, 4, stride=4), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(2, 3)
    )
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].bias[0] = 0.1
    assert score_cam(network, torch.randn(1, 3, 32, 32), [0]).weights[0, 0] == 0


@pytest.mark.parametrize(
    ("end", "words"),
    [(lambda z: (z, z), "not tuple"), (lambda z: z[:, 0], r"not \(3,\)"), (sum, r"not \(4,\)")],
)
def test_refuses_what_is_no_row_of_scores_an_image(end, words, small, images):
    with pytest.raises(ValueError, match=rf"output must be \(N, classes\), {words}"):
        score_cam(Ends(small, end), images, layer="network.bn")


@torch.no_grad()
def test_one_logit_is_that_of_the_second_of_two_classes(small, images):
    """The reference is the same network with the logits 0 and z, written out."""
    small.fc = nn.Linear(10, 1).double()
    small.fc.weight *= 5
    maps = small.eval().bn(small.conv(images))
    two = Ends(small, lambda z: F.pad(z, (1, 0)))
    expected = plain(two, images, maps, [0, 1, 1])
    found = score_cam(small, images, [0, 1, 1], layer="bn")
    assert torch.allclose(found.heatmap, expected, rtol=0, atol=1e-8) and expected.amax() == 1
    p = torch.sigmoid(small(images)).squeeze(1)
    expected = torch.stack([1 - p[0], p[1], p[2]])
    assert torch.allclose(found.probability, expected, rtol=0, atol=1e-12)
    assert (found.weights[:, 3:] % 1 != 0).all()  # neither 0 nor 1
    assert found.predicted.tolist() == (p > 0.5).int().tolist()
    with pytest.raises(ValueError, match=r"3 indices in 0\.\.1"):
        score_cam(small, images, [0, 1, 2], layer="bn")


class Ends(nn.Module):
    """A network and what comes after its logits."""

    def __init__(self, network, end):
        super().__init__()
        self.network, self.end = network, end

    def forward(self, x):
        return self.end(self.network(x))


PROBABILITIES = {
    "softmax": lambda z: z.softmax(1),
    "module": nn.Softmax(1),
    "exp": lambda z: z.log_softmax(1).exp(),
    "sigmoid": torch.sigmoid,
    "sigmoid module": nn.Sigmoid(),
    "in place": lambda z: z.sigmoid_(),
    "hard": F.hardsigmoid,
    "one sigmoid": lambda z: z[:, :1].sigmoid(),
    "one softmax": lambda z: z[:, :1].softmax(1),
    "reshaped": lambda z: z.mean(1).sigmoid().view(-1, 1),
    "cast": lambda z: z.softmax(1).float(),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("end", PROBABILITIES)
def test_refuses_a_network_that_ends_in_probabilities(end, frozen, small, images):
    small.requires_grad_(not frozen)
    with pytest.raises(ValueError, match="without its last softmax or sigmoid"):
        score_cam(Ends(small, PROBABILITIES[end]), images, layer="network.bn")
    with torch.inference_mode(), pytest.raises(ValueError, match="last softmax or sigmoid"):
        score_cam(Ends(small, PROBABILITIES[end]), images, layer="network.bn")


LOGITS = {
    "between 0 and 1": lambda z: z[:, :2].abs() / (1 + z[:, :2].abs()),
    "a sigmoid inside": lambda z: z * z.sigmoid(),
    "one between 0 and 1": lambda z: 0.5 + 0.1 * z[:, :1].tanh(),
    "log-softmax": lambda z: z.log_softmax(1),
}


@pytest.mark.parametrize("end", LOGITS)
def test_takes_logits_that_look_like_probabilities(end, small, images):
    network = Ends(small, LOGITS[end])
    found = score_cam(network, images, [0, 1, 1], layer="network.bn")
    with torch.no_grad():
        z = network.eval()(images)
    z = z if z.shape[1] > 1 else F.pad(z, (1, 0))
    expected = z.softmax(1)[range(3), [0, 1, 1]]
    assert torch.allclose(found.probability, expected, rtol=0, atol=1e-12)


def test_leaves_the_network_as_it_was(small, images):
    small.train()
    small.bn.eval()
    small.fc.weight.requires_grad_(False)
    small(images).sum().backward()

    def state():
        gradients = {name: p.grad for name, p in small.named_parameters() if p.requires_grad}
        modules = [
            (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in small.modules()
        ]
        return (
            digest(small.state_dict()),
            digest(gradients),
            modules,
            torch.get_rng_state().tolist(),
        )

    before = state()
    score_cam(small, images, layer="conv")
    with pytest.raises(RuntimeError):
        score_cam(small, images[:, :2], CLASSES)
    assert state() == before and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": "cnv"}, "no layer 'cnv'; nearest: conv"),
        ({"layer": "fc"}, r"output of fc must be a map \(N, C, h, w\), not \(3, 4\)"),
        ({"classes": [1, 2]}, r"must be 3 indices in 0\.\.3, not \[1, 2\]"),
        ({"classes": [0, 1, 4]}, r"must be 3 indices in 0\.\.3"),
        ({"classes": [0, -1, 1]}, r"must be 3 indices in 0\.\.3"),
        ({"chunk": 0}, "chunk, 0, at least 1"),
        ({"images": torch.zeros(3, 18, 15)}, r"must be \(N, 3, H, W\)"),
        ({"images": torch.full((3, 3, 18, 15), torch.nan, dtype=torch.float64)}, "not finite"),
    ],
)
def test_says_what_does_not_fit(change, words, small, images):
    arguments = {"images": images, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=words):
        score_cam(small, **arguments)
