"""Each attention module against its equations, its parameter count worked out by hand, and what a map may look like."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lcm.attention import CBAM, ECA, LCM1, LCM2, CoordinateAttention, GlobalContext, NonLocal, SimAM, SqueezeExcite
from lcm.attention.vector import spatial_mean

MODULES = {
    "lcm1": lambda channels: LCM1(channels, 4),
    "lcm1 with expand_bias": lambda channels: LCM1(channels, 2, expand_bias=True),
    "lcm2": lambda channels: LCM2(channels, 4),
    "lcm2 with expand_bias": lambda channels: LCM2(channels, 2, expand_bias=True),
    "se": lambda channels: SqueezeExcite(channels, 4),
    "cbam": lambda channels: CBAM(channels, 4),
    "cbam without bias": lambda channels: CBAM(channels, 1, bias=False),
    "nonlocal": lambda channels: NonLocal(channels),
    "gc": lambda channels: GlobalContext(channels, 4),
}
ADDED = {"eca": ECA, "simam": SimAM, "ca": CoordinateAttention}  # their equations are in test_added_attention.py
ALL = {name: MODULES[name] for name in ("lcm1", "lcm2", "se", "cbam", "nonlocal", "gc")} | ADDED


# ------------------------------------------------------------------------------------------------------------------
# The equations, on named parameters, with nothing but sums, products and elementary functions.


def matrix(weight):
    return weight.reshape(weight.shape[0], weight.shape[1])


def batch_norm(x, p, name, training):
    """x has the channels second; the statistics are those of the batch in training and the running ones otherwise."""
    others = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    if training:
        mean = x.mean(others)
        variance = ((x - mean.reshape(shape)) ** 2).mean(others)
    else:
        mean, variance = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    normal = (x - mean.reshape(shape)) / (variance.reshape(shape) + 1e-5).sqrt()
    return normal * p[f"{name}.weight"].reshape(shape) + p[f"{name}.bias"].reshape(shape)


def relu(x):
    return x * (x > 0)


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def softmax(x, dim):
    return x.exp() / x.exp().sum(dim, keepdim=True)


def lcm_parts(x, p, training):
    local = x.mean((2, 3))  # (1)
    pooled = torch.stack([torch.stack([row.sum() / len(row), row[row.argmax()]]) for row in local])
    g = sigmoid(pooled @ matrix(p["f.weight"]).T)  # (2)

    def bottleneck(s):
        hidden = relu(batch_norm(s @ matrix(p["w1.weight"]).T, p, "bn", training))
        return hidden @ matrix(p["w2.weight"]).T + p.get("w2.bias", 0)

    return local, g, bottleneck


def lcm1(x, p, training):
    local, g, bottleneck = lcm_parts(x, p, training)
    z = bottleneck(softmax(local, 1) * g)  # (3), (4), (5)
    return x + z[:, :, None, None]  # (6)


def lcm2(x, p, training):
    local, g, bottleneck = lcm_parts(x, p, training)
    s = sigmoid(bottleneck(local) + g)  # (7), (8)
    return x * s[:, :, None, None]  # (9)


def se(x, p, training):
    z = x.mean((2, 3))
    s = sigmoid(relu(z @ p["w1.weight"].T + p["w1.bias"]) @ p["w2.weight"].T + p["w2.bias"])
    return torch.einsum("nchw,nc->nchw", x, s)


def cbam(x, p, training):
    def mlp(v):
        return relu(v @ p["w0.weight"].T + p.get("w0.bias", 0)) @ p["w1.weight"].T + p.get("w1.bias", 0)

    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    maximum = flat.gather(2, flat.argmax(2, keepdim=True)).squeeze(2)
    x = torch.einsum("nchw,nc->nchw", x, sigmoid(mlp(flat.mean(2)) + mlp(maximum)))
    pooled = torch.stack([x.mean(1), x.gather(1, x.argmax(1, keepdim=True)).squeeze(1)], 1)
    padded = torch.cat([pooled.new_zeros(n, 2, 3, w), pooled, pooled.new_zeros(n, 2, 3, w)], 2)
    padded = torch.cat([pooled.new_zeros(n, 2, h + 6, 3), padded, pooled.new_zeros(n, 2, h + 6, 3)], 3)
    kernel = p["spatial.weight"][0]  # (2, 7, 7)
    taps = [kernel[a, i, j] * padded[:, a, i : i + h, j : j + w] for a in range(2) for i in range(7) for j in range(7)]
    return x * sigmoid(sum(taps))[:, None]


def non_local(x, p, training):
    def embed(x, name):
        weight, bias = matrix(p[f"{name}.weight"]), p[f"{name}.bias"]
        return torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]

    n, _, h, w = x.shape
    theta, phi, g = (embed(x, name).reshape(n, -1, h * w) for name in ("theta", "phi", "g"))
    f = softmax(torch.einsum("nci,ncj->nij", theta, phi), 2)
    y = torch.einsum("nij,ncj->nci", f, g).reshape(n, -1, h, w)
    return batch_norm(embed(y, "w"), p, "bn", training) + x


def global_context(x, p, training):
    n, c, h, w = x.shape
    scores = torch.einsum("c,nchw->nhw", p["wk.weight"].reshape(c), x) + p["wk.bias"]
    attention = softmax(scores.reshape(n, h * w), 1).reshape(n, h, w)
    context = torch.einsum("nchw,nhw->nc", x, attention)
    hidden = context @ matrix(p["wv1.weight"]).T + p["wv1.bias"]
    mean = hidden.mean(1, keepdim=True)
    hidden = (hidden - mean) / (((hidden - mean) ** 2).mean(1, keepdim=True) + 1e-5).sqrt()
    hidden = relu(hidden * p["norm.weight"] + p["norm.bias"])
    z = hidden @ matrix(p["wv2.weight"]).T + p["wv2.bias"]
    return x + z[:, :, None, None]


# Biases that only shift what a softmax, or in training a batch norm, takes the shift out of again: their gradient is 0.
SHIFTS = {False: {"phi.bias", "wk.bias"}, True: {"phi.bias", "wk.bias", "g.bias", "w.bias"}}

EQUATIONS = {"lcm1": lcm1, "lcm2": lcm2, "se": se, "cbam": cbam, "nonlocal": non_local, "gc": global_context}


def randomise(module, seed=0):
    """Random values everywhere, also where a module starts with zeros or ones and where it keeps running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.1)
            if tensor.dim() > 1:
                tensor.sub_(0.6)
    return module


def example(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODULES)
def test_forward_and_gradients_follow_the_equations(name, training):
    module = randomise(MODULES[name](8).double()).train(training)
    expected_of = EQUATIONS[name.split()[0]]
    p = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in module.state_dict().items()}
    x, x_ = example(5, 8, 6, 7).requires_grad_(), example(5, 8, 6, 7).requires_grad_()
    weights = example(5, 8, 6, 7, seed=2)  # of a loss that gives every element a gradient of its own

    y, y_ = module(x), expected_of(x_, p, training)
    (y * weights).sum().backward()
    (y_ * weights).sum().backward()

    torch.testing.assert_close(y, y_, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, x_.grad, rtol=1e-10, atol=1e-10)
    assert dict(module.named_parameters())
    for key, parameter in module.named_parameters():
        assert key in SHIFTS[training] or parameter.grad.abs().max() > 1e-6, f"{key} is not tested"
        torch.testing.assert_close(
            parameter.grad, p[key].grad, rtol=1e-10, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}"
        )


# ------------------------------------------------------------------------------------------------------------------
# Sizes and starts


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (LCM1(12, 2, expand_bias=True), 12 * 6 + 2 * 6 + 6 * 12 + 12 + 2),  # 170 a site, as the paper's DenseNets
        (LCM2(12, 2), 12 * 6 + 2 * 6 + 6 * 12 + 2),  # 158, Eq. (7) as printed
        (LCM2(256, 32), 256 * 8 + 2 * 8 + 8 * 256 + 2),
        (SqueezeExcite(12, 1), 12 * 12 + 12 + 12 * 12 + 12),
        (SqueezeExcite(16, 4), 16 * 4 + 4 + 4 * 16 + 16),
        (CBAM(12, 1, bias=False), 12 * 12 + 12 * 12 + 2 * 7 * 7),
        (CBAM(16, 4), 16 * 4 + 4 + 4 * 16 + 16 + 2 * 7 * 7),
        (NonLocal(32), 3 * (32 * 16 + 16) + 16 * 32 + 32 + 2 * 32),
        (GlobalContext(16, 4), 16 + 1 + 16 * 4 + 4 + 2 * 4 + 4 * 16 + 16),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_parameter_count_by_hand(module, parameters):
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("name", ["nonlocal", "gc"])
def test_starts_as_an_identity(name):
    x = example(2, 8, 5, 5, dtype=torch.float32)
    assert torch.equal(MODULES[name](8)(x), x)


@pytest.mark.parametrize("cls", [LCM1, LCM2, SqueezeExcite, CBAM, NonLocal, GlobalContext])
def test_reduction_larger_than_the_width_is_refused_with_both_numbers(cls):
    with pytest.raises(ValueError, match=r"\b16\b.*\b12\b"):
        cls(12, 16)
    with pytest.raises(ValueError, match=r"reduction 0\b"):
        cls(12, 0)
    cls(12, 12)  # a hidden width of one is the smallest


# ------------------------------------------------------------------------------------------------------------------
# Maps of every kind


@pytest.mark.parametrize("name", ALL)
def test_keeps_shape_and_channels_last(name):
    module = randomise(ALL[name](8))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = example(3, 8, 5, 7, dtype=torch.float32).to(memory_format=memory_format).requires_grad_()
        y = module(x)
        assert y.shape == x.shape
        assert y.stride() == x.stride()
        y.sum().backward()
        assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_autocast(name):
    module = randomise(ALL[name](8))
    inner = []
    layers = [layer for key, layer in module.named_children() if key in ("w1", "w2", "f", "w0", "wv1", "wv2", "norm")]
    for layer in layers:
        layer.register_forward_hook(lambda _, args, y: inner.extend((args[0].dtype, y.dtype)))
    x = example(4, 8, 6, 6, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in module.parameters())
    expected = module.double()(x.detach().double())
    assert (y - expected).abs().max() < 0.05 * expected.abs().max()
    assert inner or name in ("nonlocal", *ADDED)
    vectors = inner[: len(inner) // 2]  # the rest is the float64 call
    assert set(vectors) <= {torch.float32}, "the vector work is done in float32"


@pytest.mark.parametrize("name", ALL)
def test_a_network_of_bfloat16_weights_works(name):
    x = example(4, 8, 6, 6, dtype=torch.bfloat16)
    assert ALL[name](8).bfloat16()(x).dtype == torch.bfloat16


def test_mean_of_a_float16_map_does_not_overflow():
    x = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    assert spatial_mean(x, torch.float32).tolist() == [[100.0, 100.0]]


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


@pytest.mark.parametrize("name", ALL)
def test_compiles_as_one_graph(name):
    """fullgraph raises at a graph break; the backend runs the graph as it was traced, the slow test below generates code."""
    module = randomise(ALL[name](8).double())
    x = example(3, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    assert_same_step(module, torch.compile(module, fullgraph=True, backend="eager"), x)
    module, x = module.float(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_compiled_code_computes_the_same(name):
    module = randomise(ALL[name](8).double())
    x = example(3, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    assert_same_step(module, torch.compile(module, fullgraph=True), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_backward_is_deterministic_on_a_gpu(name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    module = randomise(ALL[name](64)).cuda()
    x = example(16, 64, 16, 16, dtype=torch.float32).cuda().contiguous(memory_format=torch.channels_last)
    torch.use_deterministic_algorithms(True)  # an operation that has no deterministic form raises
    try:
        first, second = step(module, x), step(module, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def step(module, x):
    module.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    (y * torch.linspace(0, 1, y.numel(), device=y.device).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_same_step(module, compiled, x):
    for a, b in zip(step(module, x), step(compiled, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
