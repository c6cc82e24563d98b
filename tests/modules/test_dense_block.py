"""The dense block that recomputes against the one that concatenates: the same values and gradients,
in linear memory."""

import copy

import pytest
import torch
from tiny import ATTENTIONS
from torch import nn
from torch.nn.utils import parametrize, prune

from lcm.models import CifarDenseNet, fill_sites
from lcm.models.build import build_network

WIDTH, GROWTH = 24, 12  # of the first block of a DenseNet


def pair(site="none", layers=5, dtype=torch.float64):
    """Two blocks of equal weights, far from the first ones: one concatenates, one recomputes."""
    fast = build_network("densenet40", site, layers=3 * layers + 4, seed=0).block1
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    linear = copy.deepcopy(fast)
    linear.memory = "linear"
    return fast.to(dtype), linear.to(dtype)


def maps(n, height, width, dtype=torch.float64, layout=torch.contiguous_format):
    torch.manual_seed(2)
    x = (
        2 * torch.randn(n, WIDTH, height, width, dtype=dtype)
        + torch.randn(WIDTH, dtype=dtype)[:, None, None]
    )
    return x.contiguous(memory_format=layout)


def run(block, x):
    """Output, gradients of the input and of every parameter (None where it is frozen), buffers
    after it, as one dict."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(3)  # of random layers
    y = block(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (y * weights.to(y)).sum().backward()
    gradients = {name: p.grad for name, p in block.named_parameters()}
    return {"output": y.detach(), "input": x.grad} | gradients | dict(block.named_buffers())


def assert_same(fast, linear, tolerance=1e-10):
    """Each tensor within `tolerance` of its largest value, or of 1 (gradients that are zero in
    exact arithmetic)."""
    assert fast.keys() == linear.keys()
    for name, a in fast.items():
        assert (a is None) == (linear[name] is None), name
        if a is not None:
            largest = a.double().abs().max().clamp_min(1)
            assert (a - linear[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("site", ATTENTIONS)
def test_equals_concatenation_in_float64(site, device, layout):
    fast, linear = (block.to(device) for block in pair(site))
    x = maps(5, 7, 6, layout=layout).to(device)
    with torch.no_grad():
        assert torch.equal(fast(x), linear(x))
    for _ in range(2):  # the second pass starts from other running statistics
        ours = run(linear, x)
        assert_same(run(fast, x), ours)
        assert ours["output"].is_contiguous(memory_format=layout)
    counts = [b for n, b in linear.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and all(count == 3 for count in counts)  # also those of the sites: once a pass
    nn.ModuleList([linear, fast]).eval()
    assert_same(run(fast, x), run(linear, x))


def test_autocast_is_as_near_to_the_truth():
    """In bf16 neither way is exact; recomputation is no farther from float64 than concatenation."""
    fast, linear = pair("se", dtype=torch.float32)
    x, errors = maps(16, 8, 8, dtype=torch.float32), []
    truth = run(copy.deepcopy(fast).double(), x.double())
    for block in (fast, linear):
        with torch.autocast("cpu", torch.bfloat16):
            found = run(block, x)
        assert all(p.grad.dtype == torch.float32 for p in block.parameters())
        names = [name for name in found if not name.endswith("tracked")]
        errors.append(
            torch.stack([(found[name] - truth[name]).norm() / truth[name].norm() for name in names])
        )
    assert errors[1].max() <= 1.1 * errors[0].max() < 0.5
    assert errors[1].mean() <= 1.1 * errors[0].mean()


@pytest.mark.parametrize("site", ["none", "lcm2"])
def test_kept_memory_is_linear_in_depth(site):
    """What the backward pass keeps, in maps of (N, H, W): one for each map, not one for each map
    and reader."""

    def kept(memory, layers):
        block = next(b for b in pair(site, layers, torch.float32) if b.memory == memory)
        x, storages = maps(2, 16, 16, dtype=torch.float32), {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = block(x)
        own = {p.untyped_storage().data_ptr() for p in [x, *block.parameters()]}
        assert y.shape[1] == WIDTH + GROWTH * layers
        return sum(size for place, size in storages.items() if place not in own) / (2 * 16 * 16 * 4)

    at_5, at_10, at_20 = (kept("linear", layers) for layers in (5, 10, 20))
    assert at_20 - at_10 == pytest.approx(2 * (at_10 - at_5), rel=0.02)
    # Its maps, and a few times that for a site's own graph.
    assert (at_20 - at_10) / 10 < GROWTH * (1.1 if site == "none" else 5)
    assert kept("fast", 20) > (10 if site == "none" else 3) * at_20


@pytest.mark.slow
def test_compiles_around_the_block():
    """torch.compile stops before a block that recomputes and goes on after it; the result is the
    eager one."""
    network = CifarDenseNet(7, 4, 10, memory="linear").double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    twin = copy.deepcopy(network)
    run(torch.compile(network, backend="aot_eager"), x)  # its own names have a prefix
    found = {name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers())
    expected = run(twin, x)
    assert_same({name: expected[name] for name in found}, found, 1e-9)


def behind(pattern, factory=nn.BatchNorm2d):
    example = maps(2, 5, 5)
    return lambda block: fill_sites(block, factory, after=pattern, seed=0, example=example)


DOUBLED = type("Doubled", (nn.Identity,), {"forward": lambda _, x: 2 * x})
CHANGES = {  # after which a layer is no longer the plain one, or learns less
    "a frozen norm": lambda block: block[1].bn.eval(),
    "a cumulative average": lambda block: setattr(block[2].bn, "momentum", None),
    "no statistics": lambda block: setattr(block[2].bn, "track_running_stats", False),
    "a frozen convolution": lambda block: block[0].conv.weight.requires_grad_(False),
    "a frozen part of a site": lambda block: block[1].site.w1.weight.requires_grad_(False),
    "hook on a layer": lambda b: b[1].register_forward_hook(lambda layer, args, y: 2 * y),
    "hook before a norm": lambda b: b[1].bn.register_forward_pre_hook(lambda _, args: 2 * args[0]),
    "parametrised": lambda b: parametrize.register_parametrization(b[1].conv, "weight", nn.Tanh()),
    "writes into its map": lambda b: b[1].site.register_forward_pre_hook(
        lambda site, args: args[0].mul_(2)
    ),
    "a forward of its own": lambda b: setattr(b[1].bn, "forward", torch.neg),
    "a hook on an empty site": lambda b: (
        setattr(b[1], "site", nn.Identity()),
        b[1].site.register_forward_hook(lambda site, args, y: 2 * y),
    ),
    "a derived empty site": lambda b: setattr(b[1], "site", DOUBLED()),
    "another padding": lambda block: setattr(block[1].conv, "padding_mode", "reflect"),
    "a dilated convolution": lambda b: vars(b[1].conv).update(dilation=(2, 2), padding=(2, 2)),
    "a norm without weights": lambda b: setattr(
        b[1], "bn", nn.BatchNorm2d(WIDTH + GROWTH, affine=False).double()
    ),
    "pruned": lambda block: prune.l1_unstructured(block[1].conv, "weight", 0.5),
    "an instance norm": lambda b: setattr(b[1], "bn", nn.InstanceNorm2d(WIDTH + GROWTH)),
    "a norm of another kind": lambda b: setattr(
        b[1], "bn", nn.GroupNorm(4, WIDTH + GROWTH).double()
    ),
    "after a layer": behind("1"),
    "after a norm": behind("1.bn"),
    "after a convolution": behind("1.conv"),
    "random behind each convolution": behind("*.conv", lambda channels: nn.Dropout(0.3)),
    "after a site": behind("1.site"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_layer_is_not_passed_over(change):
    (plain, _), (fast, linear) = pair("se"), pair("se")
    x = maps(4, 5, 5)
    change(fast), change(linear)
    fast, linear = run(fast, x), run(linear, x)
    with pytest.raises(AssertionError):
        assert_same(run(plain, x), fast)
    assert_same(fast, linear, 1e-9)
