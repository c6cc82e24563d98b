"""Each attention module against its equations, and its parameters counted by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plain import randomise
from torch import nn

from lcm import draw_weights
from lcm.attention import (
    CBAM,
    ECA,
    LCM1,
    LCM2,
    CoordinateAttention,
    GlobalContext,
    NonLocal,
    SimAM,
    SqueezeExcite,
)

# --------------------------------------------------------------------------------------------------
# The equations, on named parameters, with sums, products and elementary functions.


def matrix(weight):
    return weight.reshape(weight.shape[0], weight.shape[1])


def batch_norm(x, p, name, training):
    """x has the channels second; the statistics are those of the batch in training and the running
    ones otherwise."""
    others = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    if training:
        mean = x.mean(others)
        variance = ((x - mean.reshape(shape)) ** 2).mean(others)
    else:
        mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    normal = (x - mean.reshape(shape)) / (variance.reshape(shape) + 1e-5).sqrt()
    return normal * p[f"{name}.weight"].reshape(shape) + p[f"{name}.bias"].reshape(shape)


def lcm_parts(x, p, training):
    local = x.mean((2, 3))  # (1)
    pooled = torch.stack([torch.stack([row.sum() / len(row), row[row.argmax()]]) for row in local])
    g = torch.sigmoid(pooled @ matrix(p["f.weight"]).T)  # (2)

    def bottleneck(s):
        hidden = torch.relu(batch_norm(s @ matrix(p["w1.weight"]).T, p, "bn", training))
        return hidden @ matrix(p["w2.weight"]).T + p.get("w2.bias", 0)

    return local, g, bottleneck


def lcm1(x, p, training):
    local, g, bottleneck = lcm_parts(x, p, training)
    z = bottleneck(torch.softmax(local, 1) * g)  # (3), (4), (5)
    return x + z[:, :, None, None]  # (6)


def lcm2(x, p, training):
    local, g, bottleneck = lcm_parts(x, p, training)
    s = torch.sigmoid(bottleneck(local) + g)  # (7), (8)
    return x * s[:, :, None, None]  # (9)


def se(x, p, training):
    z = x.mean((2, 3))
    s = torch.sigmoid(
        torch.relu(z @ p["w1.weight"].T + p["w1.bias"]) @ p["w2.weight"].T + p["w2.bias"]
    )
    return torch.einsum("nchw,nc->nchw", x, s)


def cbam(x, p, training):
    def mlp(v):
        return torch.relu(v @ p["w0.weight"].T + p.get("w0.bias", 0)) @ p["w1.weight"].T + p.get(
            "w1.bias", 0
        )

    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    maximum = flat.gather(2, flat.argmax(2, keepdim=True)).squeeze(2)
    x = torch.einsum("nchw,nc->nchw", x, torch.sigmoid(mlp(flat.mean(2)) + mlp(maximum)))
    pooled = torch.stack([x.mean(1), x.gather(1, x.argmax(1, keepdim=True)).squeeze(1)], 1)
    padded = torch.cat([pooled.new_zeros(n, 2, 3, w), pooled, pooled.new_zeros(n, 2, 3, w)], 2)
    padded = torch.cat(
        [pooled.new_zeros(n, 2, h + 6, 3), padded, pooled.new_zeros(n, 2, h + 6, 3)], 3
    )
    kernel = p["spatial.weight"][0]  # (2, 7, 7)
    taps = [
        kernel[a, i, j] * padded[:, a, i : i + h, j : j + w]
        for a in range(2)
        for i in range(7)
        for j in range(7)
    ]
    return x * torch.sigmoid(sum(taps))[:, None]


def non_local(x, p, training):
    def embed(x, name):
        weight, bias = matrix(p[f"{name}.weight"]), p[f"{name}.bias"]
        return torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]

    n, _, h, w = x.shape
    theta, phi, g = (embed(x, name).reshape(n, -1, h * w) for name in ("theta", "phi", "g"))
    f = torch.softmax(torch.einsum("nci,ncj->nij", theta, phi), 2)
    y = torch.einsum("nij,ncj->nci", f, g).reshape(n, -1, h, w)
    return batch_norm(embed(y, "w"), p, "bn", training) + x


def global_context(x, p, training):
    n, c, h, w = x.shape
    scores = torch.einsum("c,nchw->nhw", p["wk.weight"].reshape(c), x) + p["wk.bias"]
    attention = torch.softmax(scores.reshape(n, h * w), 1).reshape(n, h, w)
    context = torch.einsum("nchw,nhw->nc", x, attention)
    hidden = context @ matrix(p["wv1.weight"]).T + p["wv1.bias"]
    mean = hidden.mean(1, keepdim=True)
    hidden = (hidden - mean) / (((hidden - mean) ** 2).mean(1, keepdim=True) + 1e-5).sqrt()
    hidden = torch.relu(hidden * p["norm.weight"] + p["norm.bias"])
    z = hidden @ matrix(p["wv2.weight"]).T + p["wv2.bias"]
    return x + z[:, :, None, None]


def eca(x, p, training):
    means, kernel = x.mean((2, 3)), p["conv.weight"].flatten()
    k, (n, c) = len(kernel), means.shape
    padded = torch.cat([means.new_zeros(n, k // 2), means, means.new_zeros(n, k // 2)], 1)
    scores = sum(
        kernel[j] * padded[:, j : j + c] for j in range(k)
    )  # (9), over k neighbouring channels
    return torch.einsum("nchw,nc->nchw", x, torch.sigmoid(scores))


def simam(x, p, training):
    n, c, h, w = x.shape
    mean = x.mean((2, 3)).reshape(n, c, 1, 1)
    variance = ((x - mean) ** 2).sum((2, 3)).reshape(n, c, 1, 1) / (h * w - 1)
    energy = 4 * (variance + 1e-4) / ((x - mean) ** 2 + 2 * variance + 2e-4)  # (5)
    return x * torch.sigmoid(1 / energy)  # (6)


def coordinate(x, p, training):
    def one_by_one(x, name):
        return (
            torch.einsum("oc,ncp->nop", matrix(p[f"{name}.weight"]), x) + p[f"{name}.bias"][:, None]
        )

    h = x.shape[2]
    z = torch.cat([x.sum(3) / x.shape[3], x.sum(2) / h], 2)  # (4), (5): rows, then columns
    f = batch_norm(one_by_one(z, "conv"), p, "bn", training)
    f = torch.where(f <= -3, 0, torch.where(f >= 3, f, f * (f + 3) / 6))  # (6), hard swish
    assert (f == 0).any() and (f > 3).any() and (f < 0).any()  # all of its three pieces
    g_h, g_w = (
        torch.sigmoid(one_by_one(f[:, :, :h], "rows")),
        torch.sigmoid(one_by_one(f[:, :, h:], "columns")),
    )  # (7), (8)
    return torch.einsum("nchw,nch,ncw->nchw", x, g_h, g_w)  # (9)


# Biases that only shift what a softmax, or in training a batch norm, takes the shift out of again:
# their gradient is 0.
SHIFTS = {
    False: {"phi.bias", "wk.bias"},
    True: {"phi.bias", "wk.bias", "g.bias", "w.bias", "conv.bias"},
}

MODULES = {  # of 8 channels
    "lcm1": (LCM1(8, 4), lcm1),
    "lcm1 with expand_bias": (LCM1(8, 2, expand_bias=True), lcm1),
    "lcm2": (LCM2(8, 4), lcm2),
    "lcm2 with expand_bias": (LCM2(8, 2, expand_bias=True), lcm2),
    "se": (SqueezeExcite(8, 4), se),
    "cbam": (CBAM(8, 4), cbam),
    "cbam without bias": (CBAM(8, 1, bias=False), cbam),
    "nonlocal": (NonLocal(8), non_local),
    "gc": (GlobalContext(8, 4), global_context),
    "eca": (ECA(8, gamma=1), eca),  # k = 5
    "simam": (SimAM(8), simam),
    "ca": (CoordinateAttention(8), coordinate),
}


def example(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_forward_and_gradients_follow_the_equations(name, training):
    module, expected_of = copy.deepcopy(MODULES[name])
    randomise(module.double()).train(training)
    if name == "ca":
        module.bn.weight.data *= 20  # far enough for all pieces of the hard swish
    p = {
        key: value.clone().requires_grad_(value.is_floating_point())
        for key, value in module.state_dict().items()
    }
    x, x_ = example(5, 8, 6, 7).requires_grad_(), example(5, 8, 6, 7).requires_grad_()
    weights = example(
        5, 8, 6, 7, seed=2
    )  # of a loss that gives every element a gradient of its own

    y, y_ = module(x), expected_of(x_, p, training)
    (y * weights).sum().backward()
    (y_ * weights).sum().backward()

    torch.testing.assert_close(y, y_, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, x_.grad, rtol=1e-10, atol=1e-10)
    for key, parameter in module.named_parameters():
        assert key in SHIFTS[training] or parameter.grad.abs().max() > 1e-6, f"{key} is not tested"
        torch.testing.assert_close(parameter.grad, p[key].grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (
            LCM1(12, 2, expand_bias=True),
            12 * 6 + 2 * 6 + 6 * 12 + 12 + 2,
        ),  # 170 a site, as the paper's DenseNets
        (LCM2(12, 2), 12 * 6 + 2 * 6 + 6 * 12 + 2),  # 158, Eq. (7) as printed
        (LCM2(256, 32), 256 * 8 + 2 * 8 + 8 * 256 + 2),
        (SqueezeExcite(12, 1), 12 * 12 + 12 + 12 * 12 + 12),
        (SqueezeExcite(16, 4), 16 * 4 + 4 + 4 * 16 + 16),
        (CBAM(12, 1, bias=False), 12 * 12 + 12 * 12 + 2 * 7 * 7),
        (CBAM(16, 4), 16 * 4 + 4 + 4 * 16 + 16 + 2 * 7 * 7),
        (NonLocal(32), 3 * (32 * 16 + 16) + 16 * 32 + 32 + 2 * 32),
        (ECA(64), 3),  # |log2(64) / 2 + 1/2| = 3.5
        (ECA(128), 5),  # 4, made odd
        (ECA(2048), 7),  # 6, made odd
        (SimAM(64), 0),
        (CoordinateAttention(16), 16 * 8 + 8 + 2 * 8 + 2 * (8 * 16 + 16)),  # 16 // 32 is below 8
        (CoordinateAttention(512), 512 * 16 + 16 + 2 * 16 + 2 * (16 * 512 + 512)),
        (GlobalContext(16, 4), 16 + 1 + 16 * 4 + 4 + 2 * 4 + 4 * 16 + 16),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_parameter_count_by_hand(module, parameters):
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("module", [NonLocal(8), GlobalContext(8, 4)], ids=["nonlocal", "gc"])
def test_starts_as_an_identity(module):
    x = example(2, 8, 5, 5).float()
    draw_weights(randomise(module), 0)
    assert torch.equal(module(x), x)


def test_ties_of_the_maximum_are_broken_as_in_max_pooling():
    """CBAM as its authors wrote it, with adaptive max pooling, on a map full of equal maxima."""
    module = randomise(CBAM(8, 4).double())
    x = torch.randint(0, 3, (4, 8, 5, 5), generator=torch.Generator().manual_seed(3)).double()
    x, x_ = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = example(4, 8, 5, 5, seed=2)

    def mlp(v):
        return module.w1(F.relu(module.w0(v.flatten(1))))

    scale = torch.sigmoid(mlp(F.adaptive_avg_pool2d(x_, 1)) + mlp(F.adaptive_max_pool2d(x_, 1)))
    y_ = x_ * scale[:, :, None, None]
    pooled = torch.cat((torch.mean(y_, 1, keepdim=True), torch.max(y_, 1, keepdim=True)[0]), 1)
    y_ = y_ * torch.sigmoid(F.conv2d(pooled, module.spatial.weight, padding=3))
    (module(x) * weights).sum().backward()
    (y_ * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_.grad, rtol=1e-10, atol=1e-10)
