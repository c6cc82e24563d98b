"""Each attention module against its equations, its parameters by hand, maps of every kind."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import get_class
from plain import randomise
from torch import nn

from lcm import build_network
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
from lcm.config.compose import choices, load

# --------------------------------------------------------------------------------------------------
# The equations, on named parameters.


def matrix(weight):
    return weight.reshape(weight.shape[0], weight.shape[1])


def one_by_one(x, p, name):
    """A 1x1 convolution of maps whose positions are in a row, (N, C, P) -> (N, C', P)."""
    return matrix(p[f"{name}.weight"]) @ x + p[f"{name}.bias"][:, None]


def batch_norm(x, p, training):
    """The statistics are those of the batch in training and the running ones otherwise."""
    running = p["bn.running_mean"].detach().clone(), p["bn.running_var"].detach().clone()
    return F.batch_norm(x, *running, p["bn.weight"], p["bn.bias"], training, eps=1e-5)


def lcm_parts(x, p, training):
    local = x.mean((2, 3))  # (1)
    pooled = torch.stack([torch.stack([row.sum() / len(row), row[row.argmax()]]) for row in local])
    g = torch.sigmoid(pooled @ matrix(p["f.weight"]).T)  # (2)

    def bottleneck(s):
        hidden = torch.relu(batch_norm(s @ matrix(p["w1.weight"]).T, p, training))
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
    hidden = torch.relu(x.mean((2, 3)) @ p["w1.weight"].T + p["w1.bias"])
    s = torch.sigmoid(hidden @ p["w2.weight"].T + p["w2.bias"])
    return torch.einsum("nchw,nc->nchw", x, s)


def cbam(x, p, training):
    """As its authors wrote it, with max pooling."""

    def mlp(v):
        hidden = torch.relu(v.flatten(1) @ p["w0.weight"].T + p.get("w0.bias", 0))
        return hidden @ p["w1.weight"].T + p.get("w1.bias", 0)

    channels = mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1))
    x = torch.einsum("nchw,nc->nchw", x, torch.sigmoid(channels))
    pooled = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]), 1)
    return x * torch.sigmoid(F.conv2d(pooled, p["spatial.weight"], padding=3))


def non_local(x, p, training):
    theta, phi, g = (one_by_one(x.flatten(2), p, name) for name in ("theta", "phi", "g"))
    f = torch.softmax(torch.einsum("nci,ncj->nij", theta, phi), 2)
    y = one_by_one(torch.einsum("nij,ncj->nci", f, g), p, "w")
    return batch_norm(y, p, training).reshape(x.shape) + x


def global_context(x, p, training):
    positions = x.flatten(2)  # (N, C, H W)
    attention = torch.softmax(one_by_one(positions, p, "wk"), 2)
    context = torch.einsum("ncp,nop->nc", positions, attention)
    hidden = context @ matrix(p["wv1.weight"]).T + p["wv1.bias"]
    hidden = F.layer_norm(hidden, hidden.shape[1:], p["norm.weight"], p["norm.bias"], eps=1e-5)
    z = torch.relu(hidden) @ matrix(p["wv2.weight"]).T + p["wv2.bias"]
    return x + z[:, :, None, None]


def eca(x, p, training):
    means, kernel = x.mean((2, 3)), p["conv.weight"].flatten()
    k, c = len(kernel), means.shape[1]
    padded = F.pad(means, (k // 2, k // 2))
    scores = sum(kernel[j] * padded[:, j : j + c] for j in range(k))  # (9), over k channels
    return torch.einsum("nchw,nc->nchw", x, torch.sigmoid(scores))


def simam(x, p, training):
    n, c, h, w = x.shape
    mean = x.mean((2, 3)).reshape(n, c, 1, 1)
    variance = ((x - mean) ** 2).sum((2, 3)).reshape(n, c, 1, 1) / (h * w - 1)
    energy = 4 * (variance + 1e-4) / ((x - mean) ** 2 + 2 * variance + 2e-4)  # (5)
    return x * torch.sigmoid(1 / energy)  # (6)


def coordinate(x, p, training):
    h = x.shape[2]
    z = torch.cat([x.sum(3) / x.shape[3], x.sum(2) / h], 2)  # (4), (5): rows, then columns
    f = batch_norm(one_by_one(z, p, "conv"), p, training)
    f = torch.where(f <= -3, 0, torch.where(f >= 3, f, f * (f + 3) / 6))  # (6), hard swish
    assert (f == 0).any() and (f > 3).any() and (f < 0).any()  # all of its three pieces
    g_h = torch.sigmoid(one_by_one(f[:, :, :h], p, "rows"))  # (7)
    g_w = torch.sigmoid(one_by_one(f[:, :, h:], p, "columns"))  # (8)
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
    "cbam of equal maxima": (CBAM(8, 4), cbam),
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
    image = example(5, 8, 6, 7)
    image = image.round().clamp(-1, 1) if name == "cbam of equal maxima" else image
    x, x_ = (image.clone().requires_grad_() for _ in range(2))
    weights = example(5, 8, 6, 7, seed=2)  # of a loss: every element has a gradient of its own

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
        # 170 a site, as the paper's DenseNets.
        (LCM1(12, 2, expand_bias=True), 12 * 6 + 2 * 6 + 6 * 12 + 12 + 2),
        (LCM1(16, 4), 16 * 4 + 2 * 4 + 4 * 16 + 2),
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


# --------------------------------------------------------------------------------------------------
# What holds for every file in configs/attention, one of your own among them

CHANNELS = 16
VECTORS = ("lcm1", "lcm2", "se", "cbam", "gc")  # those that pool to vectors and compute with them


@pytest.fixture(
    params=[name for name in choices("attention") if "_target_" in load("attention", name)]
)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    """The module of a site in ResNet-20's first stage, with random values also where it starts with
    zeros or ones."""
    return randomise(build_network("resnet20", name, layers=8, sites="every").stage1[0].site)


def step(module, x):
    """Output and gradients of a loss that gives every element a gradient of its own."""
    module.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    (y * torch.linspace(0, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_keeps_shape_and_layout(module):
    steps = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = example(3, CHANNELS, 5, 7).to(memory_format=layout)
        steps.append(step(module.double(), x))
        assert all(part.shape == x.shape and part.stride() == x.stride() for part in steps[-1][:2])
    assert_same(*steps)


@pytest.mark.filterwarnings("ignore")  # torch is going to replace it
def test_quantised_linear_layers(module):
    """Dynamic quantisation, of nn.Linear alone: 8 bits of a weight."""
    x = example(3, CHANNELS, 5, 7).float()
    with torch.no_grad():
        y = torch.ao.quantization.quantize_dynamic(module.eval(), {nn.Linear}, torch.qint8)(x)
        torch.testing.assert_close(y, module(x), rtol=0.05, atol=0.05)


def test_bfloat16_autocast(name, module):
    vectors = []
    for key, layer in module.named_children() if name in VECTORS else ():
        if key in ("w1", "w2", "f", "w0", "wv1", "wv2", "norm"):
            layer.register_forward_hook(lambda _, args, y: vectors.extend((args[0].dtype, y.dtype)))
    x = example(4, CHANNELS, 6, 6).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert set(vectors) <= {torch.float32}, "the vector work is done in float32"
    assert vectors or name not in VECTORS
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert all(
        torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in module.parameters()
    )
    expected = module.double()(x.detach().double())
    assert (y - expected).abs().max() < 0.05 * expected.abs().max()
    assert module.bfloat16()(x).dtype == torch.bfloat16  # weights of bfloat16 too


@pytest.mark.parametrize("kind", ["autocast", "weights of float16"])
@pytest.mark.parametrize("shape", [(2, 2048, 4, 4), (2, 16, 60, 60)], ids=str)
def test_float16_does_not_overflow(name, shape, kind):
    """Values of 50 in 2048 channels or 3600 positions add up to more than float16 holds (65504)."""
    make = get_class(load("attention", name)["_target_"])
    takes = inspect.signature(make).parameters
    torch.manual_seed(0)
    module = make(shape[1], **({"reduction": 8} if "reduction" in takes else {}))
    x = (50 + example(*shape)).half()
    expected = copy.deepcopy(module).double()(x.double())
    with torch.autocast("cpu", torch.float16, enabled=kind == "autocast"):
        y = (module if kind == "autocast" else module.half())(x)
    assert y.dtype == torch.float16 and torch.isfinite(y).all()
    assert (y - expected).abs().mean() < 0.05 * x.double().abs().mean()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(module, backend):
    """fullgraph raises at a graph break; the backend "eager" runs the graph as it was traced,
    "inductor" generates code."""
    compiled = torch.compile(module.double(), fullgraph=True, backend=backend)
    x = example(3, CHANNELS, 6, 6).contiguous(memory_format=torch.channels_last)
    assert_same(step(module, x), step(compiled, x))
    if backend == "eager":
        module, x = module.float(), x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                torch.compile(module, fullgraph=True, backend=backend)(x), module(x)
            )
