"""train.py's own steps and batches on a fake CUDA device: every network family, attention and precision.

Fake tensors have shapes, strides and a device but no data. A tensor that is left behind on the CPU and a
read by the host inside a step (`.item()`, `if tensor`) are errors here, as in a captured CUDA graph.
Backward passes and updates are left out: autograd needs a real device. Numbers are not covered.
"""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hydra_config import config
from plain import invented_batches
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import train
from lcm.config.compose import choices
from lcm.models.build import build_network
from lcm.training.graphs import ResidentBatches

DEVICE = torch.device("cuda:0")
BATCHES = invented_batches(70, 16)  # real, as a data set is: what is cached of it must not be fake
NETWORKS = [  # of every family, small where it can be
    ("resnet20", {"layers": 8}),
    ("densenet40", {"layers": 7, "memory": "fast"}),
    ("densenet40", {"layers": 7, "memory": "linear"}),
    *(
        pytest.param(model, {}, marks=pytest.mark.slow)
        for model in ("resnet50", "resnext50", "densenet121")
    ),
]


class Steps:
    """In place of with_graph: the steps of a `fit` that is left before its first epoch."""

    def __init__(self):
        self.found = []

    def __call__(self, step, batches, tensors, *rest):
        self.found.append((step, batches, tensors))


def steps_of(network, bf16, **settings):
    """[(step, batches, tensors)] for training and test, by train.py's own fit."""
    chosen = config() | {"allocator": False} | settings
    chosen["schedule"] |= {"batch_size": 16}
    data = SimpleNamespace(
        train=lambda *_: BATCHES, test=lambda *_: BATCHES, num_classes=10, image_size=32
    )
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False)
    steps = Steps()
    run = SimpleNamespace(threads=1, begin=lambda *_: None, epochs=lambda *_: ())
    with (
        mock.patch.object(train, "build_network", lambda *_, **__: network),
        mock.patch.object(train, "build_data", lambda _: data),
        mock.patch.object(train, "count", lambda *_: None),
        mock.patch.object(train, "set_up", lambda *_, **__: (DEVICE, autocast, 1)),
        mock.patch.object(train, "describe_device", lambda _: "fake"),
        mock.patch.object(train, "with_graph", steps),
        mock.patch.object(
            network, "to", lambda *_, **__: network
        ),  # fake parameters cannot be swapped
    ):
        train.fit(chosen, run)
    return steps.found


@pytest.fixture(autouse=True)
def no_backward(monkeypatch):
    """Autograd and the fused update need a real device; autocast asks for one."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "step", lambda *_: None)


def on_fake_device(network):
    """Its parameters and buffers become fake tensors on the device; other tensors stay what they are."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty_strided(
                        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE
                    )
                    learned = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(moved) if learned else moved
    return network


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", choices("attention"))
@pytest.mark.parametrize("model, overrides", NETWORKS)
def test_a_step(model, overrides, attention, bf16):
    network = build_network(model, attention, **overrides).to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True):
        seen = take_steps(on_fake_device(network), bf16)
    assert set(seen) == {torch.bfloat16 if bf16 else torch.float32} and len(seen) == 4


def take_steps(network, bf16):
    """A training and a test step for each size of a batch; returns the types of the first convolution's maps."""
    seen = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    for step, batches, tensors in steps_of(network, bf16):
        assert isinstance(batches, ResidentBatches)
        assert all(tensor.device == DEVICE for tensor in [*tensors, *batches.tensors()])
        batches.start(1)
        for size in batches.sizes():
            images, labels = batches.take(size)
            assert images.device == labels.device == DEVICE
            assert images.is_contiguous(memory_format=torch.channels_last)
            step(images, labels)
    return seen


class Left(torch.nn.Module):
    """A tensor on the CPU inside a network on a GPU."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones(3, 1, 1, device="cpu")

    def forward(self, x):
        return x * self.factor


class Read(torch.nn.Module):
    """The host reads a tensor inside a step."""

    def forward(self, x):
        return x * x.mean().item()


@pytest.mark.parametrize(
    "module, error", [(Left, RuntimeError), (Read, DataDependentOutputException)]
)
def test_what_a_gpu_would_refuse_is_an_error(module, error):
    network = torch.nn.Sequential(module(), build_network("resnet20", "none", layers=8))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(error):
        take_steps(on_fake_device(network), False)
