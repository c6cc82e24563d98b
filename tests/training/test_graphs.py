"""Whole steps as CUDA graphs, on a CPU: stand-ins for streams, events and graphs that record operations and run them again."""

import contextlib

import pytest
import torch
from plain import CPU, invented_batches, sgd, small_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcm.data.in_memory import Batches
from lcm.training.epochs import evaluate, train_epoch
from lcm.training.graphs import IN_FLIGHT, BufferFeed, Captured, Eager, HostFeed, ResidentFeed, bind
from lcm.training.step import TestStep, TrainStep

CUDA = torch.device("cuda:0")
NO_GRAPH = RuntimeError("operation not permitted when stream is capturing\nand more")


class Recorder(TorchDispatchMode):
    """Records operations; `replay` runs them on the same tensors, in the order and without the Python between them."""

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
                if (
                    isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr()
                ):  # neither a view nor in place
                    old.copy_(new)


class Stream(str):
    __slots__ = ()

    def wait_stream(self, other):
        pass


class StandIn:
    """torch.cuda as far as lcm.training.graphs uses it; `fail` maps the number of a capture to the exception it raises."""

    def __init__(self):
        self.current, self.fail, self.captures, self.emptied = Stream("default"), {}, 0, 0
        self.recorded = self.waited = 0  # steps

    @contextlib.contextmanager
    def stream(self, other):
        before, self.current = self.current, other
        yield
        self.current = before  # not in a `finally`: a capture that fails leaves its stream behind

    @contextlib.contextmanager
    def graph(self, recorder, pool, stream):
        assert pool == "pool" and stream == "side"
        self.captures += 1
        with self.stream(stream):
            with recorder:
                yield
            if self.captures in self.fail:
                raise self.fail[self.captures]

    def empty_cache(self):
        self.emptied += 1


@pytest.fixture
def cuda(monkeypatch):
    cuda = StandIn()

    class Event:
        number = 0

        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            assert stream == "default"
            cuda.recorded += 1
            self.number = cuda.recorded

        def synchronize(self):
            cuda.waited = max(cuda.waited, self.number)

    values = {"Event": Event, "Stream": lambda device: Stream("side"), "CUDAGraph": Recorder}
    values |= {"stream": cuda.stream, "graph": cuda.graph, "empty_cache": cuda.empty_cache}
    values |= {"current_stream": lambda device: cuda.current, "synchronize": lambda device: None}
    values |= {
        "set_stream": lambda other: setattr(cuda, "current", other),
        "graph_pool_handle": lambda: "pool",
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return cuda


def a_step(kind=ResidentFeed, rate=0.05, evaluation=False):
    """(step, feed) on the CPU whose feed says that it is on a GPU: 70 images in batches of 16, the last one of 6."""
    network = small_network("resnet20")
    source = kind(invented_batches(70, 16), CPU)
    source.device = CUDA
    autocast = torch.autocast("cpu", enabled=False)
    if evaluation:
        return TestStep(network, autocast, CPU), source
    return TrainStep(network, sgd(network, rate, fused=True), autocast, CPU), source


@pytest.fixture(autouse=True)
def no_transfers(monkeypatch):
    """Batches that a feed prepares for its GPU stay on the CPU."""
    prepare = Batches.prepare
    monkeypatch.setattr(Batches, "prepare", lambda self, raw, device: prepare(self, raw, CPU))


@pytest.fixture
def unchanged():
    """A function of a step and its feed: remembers their tensors and returns a function that checks them."""

    def remember(step, source):
        tensors = [*step.state(), *source.state()]
        kept = [tensor.clone() for tensor in tensors]
        return lambda: all(map(torch.equal, kept, tensors))

    return remember


@pytest.mark.parametrize("kind", [ResidentFeed, HostFeed])
def test_captured_and_eager_give_the_same_bits(cuda, kind):
    """Three epochs with a smaller last batch, another rate in the second, the third continued in its middle."""
    results = []
    for capture in (True, False):
        step, source = a_step(kind)
        bound = bind(step, source, capture)
        assert isinstance(bound, Captured if capture else Eager)
        found = [train_epoch(bound, 1)]
        step.optimizer.param_groups[0]["lr"].fill_(0.01)
        found += [train_epoch(bound, 2), train_epoch(bound, 3, start=3)]
        results.append((found, step.state()))
    assert cuda.captures == 2  # one for each size, none of them during an epoch
    assert results[0][0] == results[1][0] and all(map(torch.equal, results[0][1], results[1][1]))


def test_captured_evaluation_follows_the_weights(cuda):
    bound, eager = (bind(*a_step(evaluation=True), capture) for capture in (True, False))
    for change in (0.0, 0.3):
        for network in (bound.step.network, eager.step.network):
            with torch.no_grad():
                network.fc.weight.mul_(1 + change)
        assert evaluate(bound, 1) == evaluate(eager, 1)


@pytest.mark.parametrize("kind", [ResidentFeed, HostFeed])
@pytest.mark.parametrize("position", [0, 2])
def test_capturing_changes_nothing(cuda, unchanged, kind, position):
    """Before the first step and in the middle of an epoch, after which it goes on as if nothing had been."""
    step, source = a_step(kind)
    source.start(0)
    eager = Eager(step, source)
    for index in range(position):
        eager(index)
    same = unchanged(step, source)
    bound = bind(step, source, True)
    assert same() and cuda.current == "default" and cuda.captures == 2
    assert isinstance(bound.feed, BufferFeed if kind is HostFeed else ResidentFeed)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", [ResidentFeed, HostFeed])
def test_a_capture_that_fails_leaves_an_eager_step(cuda, unchanged, kind, number):
    """Whichever of the two: one line says why, no tensor is changed, no graph keeps memory, the default stream is back."""
    cuda.fail, lines = {number: NO_GRAPH}, []
    step, source = a_step(kind)
    same = unchanged(step, source)
    bound = bind(step, source, True, lines.append)
    assert same() and isinstance(bound, Eager) and bound.feed is source
    assert cuda.current == "default" and cuda.emptied == 1
    assert all(parameter.grad is None for parameter in step.network.parameters())
    (line,) = lines
    assert line.startswith(
        "no CUDA graph (operation not permitted when stream is capturing): every step"
    )
    assert train_epoch(bound, 1) == train_epoch(bind(*a_step(kind), False), 1)


@pytest.mark.parametrize("number", [1, 2])
def test_out_of_memory_is_no_missing_graph(cuda, unchanged, number):
    """In any of its wordings (test_memory.py)."""
    cuda.fail = {number: RuntimeError("CUDA error: out of memory")}
    step, source = a_step()
    same = unchanged(step, source)
    with pytest.raises(RuntimeError, match="memory"):
        bind(step, source, True, pytest.fail)
    assert same() and cuda.current == "default"


def test_an_error_of_the_step_itself_is_no_missing_graph(cuda, unchanged):
    """For example of torch.compile: raised as it is, once, before anything is captured."""
    step, source = a_step()
    calls = []

    def fails(images):
        calls.append(len(images))
        raise RuntimeError("backend='inductor' raised: no C++ compiler")

    step.forward, same = fails, unchanged(step, source)
    with pytest.raises(RuntimeError, match="no C"):
        bind(step, source, True, pytest.fail)
    assert calls == [16] and cuda.captures == 0 and same()


@pytest.mark.parametrize("capture", [True, False])
def test_the_cpu_is_a_few_steps_ahead_at_most(cuda, capture):
    """A signal is looked for after each step, and a step's time is asked for: at most IN_FLIGHT steps are not done then."""
    bound, behind = bind(*a_step(), capture), []
    train_epoch(bound, 1, after_step=lambda done: behind.append(done - cuda.waited))
    assert max(behind) == IN_FLIGHT == 3 and len(behind) == 5


def test_a_cpu_has_nothing_to_wait_for(cuda):
    step, source = a_step()
    source.device = CPU
    train_epoch(bind(step, source, True), 1)
    assert cuda.recorded == cuda.captures == 0
