"""train.py's own steps and batches on a fake CUDA device: every network family, attention and
precision.

Fake tensors have shapes, strides and a device but no data. A tensor that is left behind on the CPU
and a read by the host inside a step (`.item()`, `if tensor`) are errors here, as in a captured CUDA
graph. Backward passes are left out, autograd needs a real device; of an update its fused kernel is.
Numbers are not covered.
"""

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hydra_config import config
from plain import in_train, invented_batches
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


def steps_of(network, bf16, optimizer):
    """[(step, batches, tensors)] for training and test, by train.py's own fit."""
    chosen = config(schedule__batch_size=16, schedule__optimizer=optimizer, allocator=False)
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=bf16, cache_enabled=False)
    run = SimpleNamespace(threads=1, begin=lambda *_: None, epochs=lambda *_: ())
    steps = []  # of a `fit` that is left before its first epoch
    with (
        in_train(network, BATCHES, BATCHES),
        mock.patch.object(train, "set_up", lambda *_, **__: (DEVICE, autocast, 1)),
        mock.patch.object(train, "describe_device", lambda _: "fake"),
        mock.patch.object(train, "with_graph", lambda *facts: steps.append(facts[:3])),
        # fake parameters cannot be swapped
        mock.patch.object(network, "to", lambda *_, **__: network),
    ):
        train.fit(chosen, run)
    return steps


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """Autocast asks for a device; the fused kernels of the updates have no fake ones."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for kernel in ("_fused_sgd_", "_fused_adamw_"):
        monkeypatch.setattr(torch, kernel, updated)


def updated(parameters, gradients, *lists, lr, found_inf, **numbers):
    """In place of a fused kernel: all its tensors are on the device."""
    for tensor in [*parameters, *gradients, *itertools.chain(*lists), lr, found_inf]:
        assert tensor.device == DEVICE


def on_fake_device(network):
    """Its parameters and buffers become fake tensors on the device; other tensors stay."""
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


@pytest.mark.parametrize("bf16, optimizer", [(False, "sgd"), (True, "adamw")])
@pytest.mark.parametrize("attention", choices("attention"))
@pytest.mark.parametrize("model, overrides", NETWORKS)
def test_a_step(model, overrides, attention, bf16, optimizer):
    network = build_network(model, attention, **overrides).to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True):
        seen = take_steps(on_fake_device(network), bf16, optimizer)
    assert set(seen) == {torch.bfloat16 if bf16 else torch.float32} and len(seen) == 4


def take_steps(network, bf16, optimizer="sgd"):
    """A training and a test step for each size of a batch; returns the types of the first
    convolution's maps.
    """
    seen = []
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))

    def backward(loss):
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)

    for step, batches, tensors in steps_of(network, bf16, optimizer):
        assert isinstance(batches, ResidentBatches)
        assert all(
            tensor.device == DEVICE for tensor in [*tensors(), *batches.plan, batches.cursor]
        )
        for size in batches.sizes():
            batches.start(1, step=0)
            images, labels = batches.take(size)
            assert images.device == labels.device == DEVICE
            assert images.is_contiguous(memory_format=torch.channels_last)
            with mock.patch.object(torch.Tensor, "backward", backward):
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
