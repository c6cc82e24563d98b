"""What holds for every attention in configs/attention, one of your own among them: maps of every kind, compilation, devices."""

import pytest
import torch

from lcm import build_network
from lcm.attention.vector import spatial_mean
from lcm.config.options import choices, load

ATTENTIONS = [name for name in choices("attention") if "_target_" in load("attention", name)]
CHANNELS = 16
VECTORS = ("lcm1", "lcm2", "se", "cbam", "gc")  # those that pool to vectors and compute with them


def module_of(name):
    """The module of a site in ResNet-20's first stage, with random values also where it starts with zeros or ones."""
    module = build_network("resnet20", name, layers=8, sites="every").stage1[0].site
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0.5 if tensor.dim() > 1 else -0.1))
    return module


def example(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_keeps_shape_and_channels_last(name):
    module = module_of(name)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = example(3, CHANNELS, 5, 7, dtype=torch.float32).to(memory_format=memory_format).requires_grad_()
        y = module(x)
        assert y.shape == x.shape
        assert y.stride() == x.stride()
        y.sum().backward()
        assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_bfloat16_autocast(name):
    module = module_of(name)
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
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in module.parameters())
    expected = module.double()(x.detach().double())
    assert (y - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_network_of_bfloat16_weights_works(name):
    x = example(4, CHANNELS, 6, 6, dtype=torch.bfloat16)
    assert module_of(name).bfloat16()(x).dtype == torch.bfloat16


def test_mean_of_a_float16_map_does_not_overflow():
    x = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    assert spatial_mean(x, torch.float32).tolist() == [[100.0, 100.0]]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_compiles_as_one_graph(name):
    """fullgraph raises at a graph break; the backend runs the graph as it was traced, the slow test below generates code."""
    module = module_of(name).double()
    x = example(3, CHANNELS, 6, 6).contiguous(memory_format=torch.channels_last)
    assert_same_step(module, torch.compile(module, fullgraph=True, backend="eager"), x)
    module, x = module.float(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_compiled_code_computes_the_same(name):
    module = module_of(name).double()
    x = example(3, CHANNELS, 6, 6).contiguous(memory_format=torch.channels_last)
    assert_same_step(module, torch.compile(module, fullgraph=True), x)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ATTENTIONS)
def test_backward_is_deterministic_on_a_gpu(name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    module = module_of(name).cuda()
    x = example(16, CHANNELS, 16, 16, dtype=torch.float32).cuda().contiguous(memory_format=torch.channels_last)
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
