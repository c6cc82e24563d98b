"""One training and one evaluation step of every network family and attention on the meta device: what a GPU would refuse.

Meta tensors have shapes, strides and a device but no data: nothing can be read back (`.item()` and `nonzero` raise), as in a
captured CUDA graph, and a tensor left on the CPU is noticed where it meets the others.
"""

import sys

import pytest
import torch
from plain import invented_batches
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lcm.config.compose import choices
from lcm.models.build import build_network
from lcm.training.graphs import ResidentFeed
from lcm.training.step import TestStep, TrainStep

META = torch.device("meta")


class Autocast(TorchFunctionMode):
    """torch.autocast for the meta device, which has none: the operations that a GPU casts, down and up; nests like it."""

    current = None  # the dtype

    def __init__(self, device_type, dtype=None, enabled=True, **options):
        super().__init__()
        assert device_type == "meta"
        self.dtype = dtype if enabled else None

    def __enter__(self):
        self.before, Autocast.current = Autocast.current, self.dtype
        return super().__enter__()

    def __exit__(self, *error):
        Autocast.current = self.before
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        to = dict.fromkeys(("conv2d", "linear", "matmul", "__matmul__", "bmm"), self.dtype)
        to |= dict.fromkeys(("softmax", "sum", "layer_norm"), torch.float32)
        dtype = to.get(function.__name__) if self.dtype else None
        if dtype and not (kwargs or {}).get("dtype"):
            cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
        return function(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    """Refuses an operation that mixes devices; counts the convolutions in each dtype."""

    def __init__(self):
        super().__init__()
        self.convolutions = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        devices = {
            t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)
        }
        assert len(devices) < 2, (operation, devices)
        if operation is torch.ops.aten.convolution.default:
            self.convolutions.append(args[0].dtype)
        if "conv" in str(
            operation
        ):  # cuDNN's results are channels-last where an argument is; the meta device's never
            layout = torch._prims_common.suggest_memory_format(args[1])
            return tree_map_only(
                torch.Tensor,
                lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t,
                out,
            )
        return out


updated = []  # how many parameters each update had


def fused_sgd(parameters, gradients, momenta, **options):
    """The kernel that the meta device lacks: it asks what the CUDA kernel asks, equal strides."""
    updated.append(len(parameters))
    for row in zip(parameters, gradients, momenta, strict=True):
        assert (
            len({tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1) for t in row})
            == 1
        )


@pytest.fixture(scope="module", autouse=True)
def meta():
    """What the meta device lacks."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_fused_sgd_.tensor_lr", fused_sgd)
    with pytest.MonkeyPatch.context() as patch:
        enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
        patch.setattr(
            sys.modules["torch.optim.sgd"],
            "_device_dtype_check_for_fused",
            lambda *args, **options: None,
        )
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(
            torch,
            "is_autocast_enabled",
            lambda *k: bool(Autocast.current) if k == ("meta",) else enabled(*k),
        )
        patch.setattr(
            torch, "get_autocast_dtype", lambda k: Autocast.current if k == "meta" else dtype(k)
        )
        yield
    library._destroy()


NETWORKS = [  # of every family, small where it can be
    ("resnet20", {"layers": 8}),
    ("densenet40", {"layers": 7, "memory": "fast"}),
    ("densenet40", {"layers": 7, "memory": "linear"}),
    *(
        pytest.param(model, {}, marks=pytest.mark.slow)
        for model in ("resnet50", "resnext50", "densenet121")
    ),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", choices("attention"))
@pytest.mark.parametrize("model, overrides", NETWORKS)
def test_a_step(model, overrides, attention, precision):
    with META:
        network = build_network(model, attention, **overrides)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True, fused=True
    )
    optimizer.param_groups[0]["lr"] = torch.empty(
        (), device=META
    )  # its constructor reads the number
    autocast = Autocast("meta", torch.bfloat16, enabled=precision == "bf16")
    feed = ResidentFeed(invented_batches(70, 16), META)
    feed.start(0)
    train, test = TrainStep(network, optimizer, autocast, META), TestStep(network, autocast, META)
    updated.clear()
    with OneDevice() as seen:
        for size in (16, 6):
            train(*feed.take(size))
        test(*feed.take(16))
    wide = torch.bfloat16 if precision == "bf16" else torch.float32
    assert (
        set(seen.convolutions) - {torch.float32} == {wide} - {torch.float32}
        and seen.convolutions.count(wide) > 3
    )
    assert updated == [len(list(network.parameters()))] * 2


def test_a_tensor_left_on_the_cpu_is_noticed():
    here, there = torch.zeros(()), torch.zeros(3, device=META)
    with pytest.raises(AssertionError, match="cpu"), OneDevice():
        there + here
