"""The dense block in one buffer against the one that concatenates: the same values and gradients, in linear memory."""

import copy

import pytest
import torch

from lcm import attention
from lcm.models import CifarDenseNet, fill_sites
from lcm.models.cifar_densenet import DenseBlock
from lcm.models.weights import draw_weights

SITES = {
    "none": None,
    "lcm1": lambda channels: attention.LCM1(channels, 2, expand_bias=True),
    "lcm2": lambda channels: attention.LCM2(channels, 2, expand_bias=True),
    "se": lambda channels: attention.SqueezeExcite(channels, 1),
    "cbam": lambda channels: attention.CBAM(channels, 1, bias=False),
    "nonlocal": attention.NonLocal,
    "gc": lambda channels: attention.GlobalContext(channels, 1),
}


def pair(site="none", layers=5, in_channels=6, growth_rate=4, dtype=torch.float64):
    """Two blocks with the same weights, far from the first ones: one concatenates, one has a buffer."""
    fast = DenseBlock(in_channels, layers, growth_rate, 1, "fast")
    if SITES[site]:
        fill_sites(fast, SITES[site])
    draw_weights(fast, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    linear = copy.deepcopy(fast)
    linear.memory = "linear"
    return fast.to(dtype), linear.to(dtype)


def maps(*shape, dtype=torch.float64, memory_format=torch.contiguous_format):
    torch.manual_seed(2)
    x = 2 * torch.randn(shape, dtype=dtype) + torch.randn(shape[1], dtype=dtype)[:, None, None]
    return x.contiguous(memory_format=memory_format)


def run(block, x, weigh=None):
    """(output, gradients of the input and of every parameter, buffers after it)."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = block(x)
    weigh = (
        torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if weigh is None
        else weigh
    )
    (y * weigh.to(y.dtype)).sum().backward()
    return (
        y.detach(),
        {"input": x.grad, **{n: p.grad for n, p in block.named_parameters()}},
        dict(block.named_buffers()),
    )


def assert_same(fast, linear, tolerance):
    """Each tensor within `tolerance` of its largest value, or of 1 (gradients that are zero in exact arithmetic)."""
    for a, b in zip(fast, linear, strict=True):
        a, b = (part if isinstance(part, dict) else {"output": part} for part in (a, b))
        assert a.keys() == b.keys()
        for name in a:
            difference = (a[name] - b[name]).abs().max()
            assert difference <= tolerance * a[name].double().abs().max().clamp_min(1), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("site", SITES)
def test_equals_concatenation_in_float64(site, memory_format):
    fast, linear = pair(site)
    x = maps(5, 6, 7, 6, memory_format=memory_format)
    for _ in range(2):  # the second pass starts from other running statistics
        ours, theirs = run(linear, x), run(fast, x)
        assert_same(theirs, ours, 1e-10)
        assert ours[0].is_contiguous(memory_format=memory_format)
    counts = [b for n, b in linear.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and all(count == 2 for count in counts)  # batch norms of the sites among them: once a pass
    linear.eval(), fast.eval()
    assert_same(run(fast, x), run(linear, x), 1e-10)


def test_autocast_is_as_near_to_the_truth():
    """In bf16 neither way is exact; the buffer is no farther from float64 than concatenation."""
    fast, linear = pair("se", dtype=torch.float32)
    x = maps(16, 6, 8, 8, dtype=torch.float32)
    truth = run(copy.deepcopy(fast).double(), x.double())
    errors = []
    for block in (fast, linear):
        with torch.autocast("cpu", torch.bfloat16):
            y, gradients, buffers = run(block, x)
        assert all(g.dtype == torch.float32 for g in gradients.values())
        error = [(y - truth[0]).norm() / truth[0].norm()]
        error += [(g - truth[1][n]).norm() / truth[1][n].norm() for n, g in gradients.items()]
        error += [(b - truth[2][n]).norm() / truth[2][n].norm() for n, b in buffers.items() if "running" in n]
        errors.append(torch.stack(error))
    assert errors[1].max() < 0.3
    assert errors[1].mean() <= 1.1 * errors[0].mean()


def test_no_grad_frozen_and_cumulative_batch_norms_concatenate():
    fast, linear = pair("lcm2")
    x = maps(4, 6, 5, 5)
    with torch.no_grad():
        assert torch.equal(fast(x), linear(x))
    for block in (fast, linear):
        block[1].bn.eval()  # one frozen batch norm
    assert_same(run(fast, x), run(linear, x), 1e-12)
    for block in (fast, linear):
        block.train()
        block[2].bn.momentum = None  # a cumulative average
    assert_same(run(fast, x), run(linear, x), 1e-12)


@torch.no_grad()
def test_the_block_for_evaluation_has_the_norms_of_the_moment():
    """Factor and summand of a batch norm, its eps, weight and bias among them, or neither; folded copies can be copied."""
    fast, _ = pair("lcm2")
    fast(maps(4, 6, 5, 5))  # statistics that are not 0 and 1
    for layer, eps in zip(fast, (1e-5, 0.1, 0.5, 0.1, 1e-5), strict=True):
        layer.bn.eps = eps
    fast[3].bn.weight = fast[3].bn.bias = None
    fast.eval()
    x = maps(4, 6, 5, 5)
    evaluated = copy.deepcopy(fast.for_evaluation())
    torch.testing.assert_close(evaluated(x), fast(x), rtol=1e-12, atol=1e-12)
    x, fast, evaluated, calls = x.float(), fast.float(), fast.for_evaluation().float(), []
    evaluated.layers[0].bn.register_forward_hook(lambda *_: calls.append(1))
    evaluated(x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):  # the buffer is slower there than concatenation, which is taken
        y = evaluated(x)
        assert calls and torch.equal(y, fast(x))


def test_frozen_parameters_get_no_gradient():
    fast, linear = pair("se")
    for block in (fast, linear):
        block[0].conv.weight.requires_grad_(False)
        block[1].site.w1.weight.requires_grad_(False)
    x = maps(4, 6, 5, 5)
    results = []
    for block in (fast, linear):
        block(x).square().sum().backward()  # the input learns nothing either
        results.append({n: p.grad for n, p in block.named_parameters()})
    assert results[1]["0.conv.weight"] is results[1]["1.site.w1.weight"] is None
    for name, gradient in results[0].items():
        if gradient is not None:
            torch.testing.assert_close(results[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_a_change_of_weights_before_backward_is_refused():
    _, linear = pair()
    loss = linear(maps(4, 6, 5, 5)).square().sum()
    with torch.no_grad():
        linear[0].conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("site", ["none", "lcm2"])
def test_kept_memory_is_linear_in_depth(site):
    """What the backward pass keeps, in maps of (N, H, W): one for each map, not one for each map and reader."""

    def kept(memory, layers):
        block = next(b for b in pair(site, layers=layers, dtype=torch.float32) if b.memory == memory)
        x = maps(2, 6, 16, 16, dtype=torch.float32)
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = block(x)
        own = {p.untyped_storage().data_ptr() for p in [x, *block.parameters()]}
        assert y.shape[1] == 6 + 4 * layers
        return sum(size for place, size in storages.items() if place not in own) / (2 * 16 * 16 * 4)

    at_5, at_10, at_20 = (kept("linear", layers) for layers in (5, 10, 20))
    assert at_20 - at_10 == pytest.approx(2 * (at_10 - at_5), rel=0.02)
    per_layer = (at_20 - at_10) / 10
    assert per_layer < (4.5 if site == "none" else 20)  # the k = 4 maps, and a few times that for a site's own graph
    assert kept("fast", 20) > (10 if site == "none" else 3) * at_20


@pytest.mark.slow
def test_compiles_around_the_block():
    """torch.compile stops before a block in one buffer and goes on after it; the result is the eager one."""
    network = CifarDenseNet(7, 4, 10, memory="linear").double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    twin = copy.deepcopy(network)
    torch.compile(network, backend="aot_eager")(images).square().sum().backward()
    twin(images).square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)
    for (name, ours), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_equals_concatenation_on_a_gpu(memory_format):
    fast, linear = (block.cuda() for block in pair("lcm2"))
    x = maps(5, 6, 8, 8, memory_format=memory_format).cuda()
    weigh = torch.randn(5, 6 + 5 * 4, 8, 8, dtype=torch.float64, device="cuda")
    assert_same(run(fast, x, weigh), run(linear, x, weigh), 1e-10)
