"""train.py's steps as CUDA graphs, on a CPU: stand-ins record operations and run them again."""

import contextlib
import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain import CPU, invented_batches, small_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from lcm.config.compose import load
from lcm.data.in_memory import Batches
from lcm.errors import UserError
from lcm.training.graphs import (
    IN_FLIGHT,
    HostBatches,
    ResidentBatches,
    with_graph,
)
from lcm.training.schedule import make_optimizer
from lcm.training.state import Sums, TrainingState

CUDA = torch.device("cuda:0")


class Recorder(TorchDispatchMode):
    """Records operations; `replay` runs them on the same tensors without any Python between."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, out))
        return out

    @torch.inference_mode()
    def replay(self):
        for operation, args, kwargs, out in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                # neither a view nor in place
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream(str):
    wait_stream = lambda *_: None  # noqa: E731


class StandIn:
    """torch.cuda as far as lcm.training.graphs uses it.

    `fail` maps the number of a capture to the exception that it raises.
    """

    def __init__(self):
        self.current = Stream("default")
        self.fail = {}
        self.captures = 0
        self.debug_mode = "default"
        self.recorded = self.waited = 0  # steps

    @contextlib.contextmanager
    def stream(self, other):
        before, self.current = self.current, other
        yield
        self.current = before  # not in a `finally`: a failed capture leaves its stream behind

    @contextlib.contextmanager
    def graph(self, recorder, pool, stream):
        assert pool == "pool" and stream == "side"
        self.captures += 1
        with self.stream(stream):
            with recorder:
                yield
            if self.captures in self.fail:
                raise self.fail[self.captures]

    def set_stream(self, other):
        self.current = other

    def set_sync_debug_mode(self, mode):
        self.debug_mode = mode


class Event:
    def __init__(self, cuda, blocking):
        assert blocking
        self.cuda = cuda
        self.number = 0

    def record(self):
        assert self.cuda.current == "default"
        self.cuda.recorded += 1
        self.number = self.cuda.recorded

    def synchronize(self):
        self.cuda.waited = max(self.cuda.waited, self.number)


@pytest.fixture
def cuda(monkeypatch):
    """The stand-in; batches that are prepared for its GPU stay on the CPU."""
    cuda, prepare = StandIn(), Batches.prepare
    monkeypatch.setattr(Batches, "prepare", lambda self, raw, device: prepare(self, raw, CPU))
    values = {
        "Event": functools.partial(Event, cuda),
        "Stream": lambda device: Stream("side"),
        "CUDAGraph": Recorder,
        "current_stream": lambda device: cuda.current,
        "synchronize": lambda device: None,
        "manual_seed": lambda seed: None,
        "graph_pool_handle": lambda: "pool",
    }
    values |= {
        name: getattr(cuda, name)
        for name in ("stream", "graph", "set_stream", "set_sync_debug_mode")
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return cuda


def a_step(kind=ResidentBatches, evaluation=False, hook=None, **schedule):
    """A step of train.py, on the CPU, whose batches say that they are on a GPU.

    70 images in batches of 16, the last one of 6. `bind(capture)` is `with_graph`. The network
    begins in the wrong mode; `mode` sets the right one. `hook`: of its forward pass.
    """
    network = small_network("resnet20").train(evaluation)
    network.register_buffer("calls", torch.zeros(()))
    network.register_forward_hook(hook or (lambda *_: None))
    batches = kind(invented_batches(70, 16), CPU)
    batches.device = CUDA
    schedule = load("schedule", "cifar") | schedule
    optimizer = make_optimizer(schedule, network)
    optimizer.param_groups[0]["lr"].fill_(0.05)
    sums = Sums(CPU)
    made = SimpleNamespace(network=network, optimizer=optimizer, sums=sums, batches=batches)
    if evaluation:
        made.tensors, made.mode = sums.tensors, network.eval
        step = train.evaluation_step(network, sums)
    else:
        made.tensors = TrainingState(network, optimizer, sums).tensors
        made.mode = network.train
        step = train.training_step(network, optimizer, sums, schedule)

    def bind(capture, warn=pytest.fail):
        return with_graph(step, batches, made.tensors, capture, made.mode, (0, "train"), warn)

    made.bind = bind
    return made


def an_epoch(made, repeated, epoch, start=0):
    """The sums of one epoch, or of its rest."""
    made.mode()
    if start == 0:
        made.sums.clear()
    list(repeated.epoch(epoch, start))
    return made.sums.values.tolist()


def watch(made):
    """A function: whether the tensors of `a_step` are still what they are now."""
    kept = [tensor.clone() for tensor in made.tensors()]
    return lambda: all(map(torch.equal, kept, made.tensors()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_captured_and_eager_give_the_same_bits(cuda, optimizer):
    """Three epochs with a smaller last batch; another rate in the second, the third continued."""
    results = []
    for capture in (True, False):
        made = a_step(optimizer=optimizer)
        same = watch(made)
        repeated = made.bind(capture)
        assert same() and bool(repeated.graphs) == capture and cuda.current == "default"
        found = [an_epoch(made, repeated, 1)]
        made.optimizer.param_groups[0]["lr"].fill_(0.01)
        found += [an_epoch(made, repeated, 2), an_epoch(made, repeated, 3, start=3)]
        results.append((found, made.tensors()))
    assert cuda.captures == 2  # one for each size, none of them during an epoch
    assert results[0][0] == results[1][0] and all(map(torch.equal, results[0][1], results[1][1]))


def test_captured_evaluation_follows_the_weights(cuda):
    one, other = (a_step(evaluation=True) for _ in range(2))
    bound, eager = one.bind(True), other.bind(False)
    for change in (0.0, 0.3):
        for made in (one, other):
            with torch.no_grad():
                made.network.fc.weight.mul_(1 + change)
        assert an_epoch(one, bound, 1) == an_epoch(other, eager, 1)


def replaces_a_buffer(network, args, logits):
    network.calls = network.calls + 1
    return logits * network.calls


def waits_for_the_gpu(network, args, logits):
    if torch.cuda.set_sync_debug_mode.__self__.debug_mode == "error":
        raise RuntimeError("called a synchronizing CUDA operation\nand more")


@pytest.mark.parametrize(
    "hook, words",
    [
        (lambda network, args, logits: logits * random.random(), "random numbers on the CPU"),
        (lambda network, args, logits: logits * np.random.rand(), "random numbers on the CPU"),
        (lambda network, args, logits: logits * torch.rand(1), "random numbers on the CPU"),
        (replaces_a_buffer, "a step replaces a buffer of the network; write to it in place"),
        (waits_for_the_gpu, "RuntimeError: called a synchronizing CUDA operation"),
    ],
)
def test_a_step_that_a_graph_would_not_repeat_is_not_captured(cuda, hook, words):
    """One line says why, no tensor is changed."""
    lines = []
    made, eager = (a_step(hook=hook) for _ in range(2))
    same = watch(made)
    bound = made.bind(True, lines.append)
    assert same() and not bound.graphs and cuda.captures == 0
    assert cuda.current == cuda.debug_mode == "default"
    (line,) = lines
    assert line.startswith("no CUDA graph (") and f"{words}): every step" in line
    assert an_epoch(made, bound, 1) == an_epoch(eager, eager.bind(False), 1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_capture_that_fails_is_named_by_its_first_error(cuda, number):
    cuda.fail[number] = RuntimeError("operation failed due to a previous error during capture")
    cuda.fail[number].__context__ = RuntimeError("operation not permitted\nand more")
    made = a_step()
    same = watch(made)
    with pytest.raises(UserError, match=r"\(RuntimeError: operation not permitted\): set capture="):
        made.bind(True)
    assert same() and cuda.current == "default"


@pytest.mark.parametrize(
    "number, words",
    [(0, "backend='inductor' raised"), (1, "CUDA error: out of memory"), (2, "out of memory")],
)
def test_other_errors_are_no_missing_graph(cuda, number, words):
    """Of the step itself, torch.compile's for example: before a capture; out of memory in one."""
    made = a_step()
    same = watch(made)
    calls = []

    def called(network, inputs):
        calls.append(len(inputs[0]))
        if number == 0:
            raise RuntimeError(words)

    made.network.register_forward_pre_hook(called)
    cuda.fail[number] = RuntimeError(words)
    with pytest.raises(RuntimeError, match=words):
        made.bind(True)
    assert same() and cuda.current == "default" and cuda.captures == number
    assert calls == ([16, 6] * 3 + [16] + [16, 6][:number] if number else [16])


@pytest.mark.parametrize(
    "kind, device, captures, most",
    [
        (ResidentBatches, CUDA, 2, IN_FLIGHT),
        (HostBatches, CUDA, 0, IN_FLIGHT),
        (HostBatches, CPU, 0, 5),
    ],
)
def test_the_cpu_is_a_few_steps_ahead_at_most(cuda, kind, device, captures, most):
    """A signal is looked for after each step: at most IN_FLIGHT steps are not done then.

    With batches of a CPU there is nothing to wait for.
    """
    made = a_step(kind)
    made.batches.device = device
    behind = [done - cuda.waited for done in made.bind(True).epoch(1)]
    assert max(behind) == most and IN_FLIGHT == 3 and len(behind) == 5
    assert cuda.captures == captures and (cuda.recorded == 0) == (device == CPU)
