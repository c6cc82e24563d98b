"""What holds for every attention in configs/attention, one of your own among them: maps of every
kind, compilation."""

import copy
import inspect

import pytest
import torch
from hydra.utils import get_class
from plain import randomise

from lcm import build_network
from lcm.config.compose import choices, load

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


def example(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


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


def test_bfloat16_autocast(name, module):
    vectors = []
    for key, layer in module.named_children() if name in VECTORS else ():
        if key in ("w1", "w2", "f", "w0", "wv1", "wv2", "norm"):
            layer.register_forward_hook(lambda _, args, y: vectors.extend((args[0].dtype, y.dtype)))
    x = example(4, CHANNELS, 6, 6, dtype=torch.bfloat16).requires_grad_()
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
