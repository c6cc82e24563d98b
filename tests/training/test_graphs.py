"""Whole steps as CUDA graphs, on a CPU: stand-ins for streams, events and graphs that record operations and run them again."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain import CPU, invented_batches, sgd, small_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcm.data.in_memory import Batches
from lcm.training.graphs import (
    IN_FLIGHT,
    BufferedBatches,
    HostBatches,
    ResidentBatches,
    with_graph,
)
from lcm.training.state import Sums, TrainingState

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
    values |= {"manual_seed": lambda seed: None}
    values |= {
        "set_stream": lambda other: setattr(cuda, "current", other),
        "graph_pool_handle": lambda: "pool",
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return cuda


def a_step(kind=ResidentBatches, rate=0.05, evaluation=False):
    """A step as train.py makes it, on the CPU, whose batches say that they are on a GPU.

    70 images in batches of 16, the last one of 6. `bind(capture)` is `with_graph`; `forward` can be
    replaced.
    """
    network = small_network("resnet20")
    batches = kind(invented_batches(70, 16), CPU)
    batches.device = CUDA
    sums, optimizer = Sums(CPU), sgd(network, rate, fused=True)
    state = TrainingState(network, optimizer, sums)
    made = SimpleNamespace(network=network, optimizer=optimizer, sums=sums, batches=batches)
    made.forward = network
    made.tensors = sums.tensors() if evaluation else state.tensors()

    def train_step(images, labels):
        optimizer.zero_grad()
        logits = made.forward(images)
        loss = F.cross_entropy(logits, labels)
        sums.add(loss.detach().double() * len(labels), logits, labels)
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def test_step(images, labels):
        logits = made.forward(images)
        sums.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)

    step, mode = (test_step, network.eval) if evaluation else (train_step, network.train)

    def bind(capture, warn=pytest.fail):
        return with_graph(step, batches, made.tensors, capture, mode, (0, "train"), warn)

    made.bind = bind
    return made


def an_epoch(made, repeated, epoch, start=0):
    """The sums of one epoch, or of its rest."""
    if start == 0:
        made.sums.clear()
    for _ in repeated.epoch(epoch, start):
        pass
    return made.sums.values.tolist()


@pytest.fixture(autouse=True)
def no_transfers(monkeypatch):
    """Batches that a feed prepares for its GPU stay on the CPU."""
    prepare = Batches.prepare
    monkeypatch.setattr(Batches, "prepare", lambda self, raw, device: prepare(self, raw, CPU))


@pytest.fixture
def unchanged():
    """A function of `a_step`: remembers its tensors and returns a function that checks them."""

    def remember(made):
        tensors = [*made.tensors, *made.batches.tensors()]
        kept = [tensor.clone() for tensor in tensors]
        return lambda: all(map(torch.equal, kept, tensors))

    return remember


KINDS = [ResidentBatches, HostBatches]


@pytest.mark.parametrize("kind", KINDS)
def test_captured_and_eager_give_the_same_bits(cuda, kind):
    """Three epochs with a smaller last batch, another rate in the second, the third continued in its middle."""
    results = []
    for capture in (True, False):
        made = a_step(kind)
        repeated = made.bind(capture)
        assert bool(repeated.graphs) == capture
        found = [an_epoch(made, repeated, 1)]
        made.optimizer.param_groups[0]["lr"].fill_(0.01)
        found += [an_epoch(made, repeated, 2), an_epoch(made, repeated, 3, start=3)]
        results.append((found, made.tensors))
    assert cuda.captures == 2  # one for each size, none of them during an epoch
    assert results[0][0] == results[1][0] and all(map(torch.equal, results[0][1], results[1][1]))


def test_captured_evaluation_follows_the_weights(cuda):
    one, other = (a_step(evaluation=True) for _ in range(2))
    bound, eager = one.bind(True), other.bind(False)
    for change in (0.0, 0.3):
        for made in (one, other):
            with torch.no_grad():
                made.network.fc.weight.mul_(1 + change)
            made.network.eval()
        assert an_epoch(one, bound, 1) == an_epoch(other, eager, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 2])
def test_capturing_changes_nothing(cuda, unchanged, kind, position):
    """Before the first step and in the middle of an epoch, after which it goes on as if nothing had been."""
    made = a_step(kind)
    for done, _ in zip(range(position), made.bind(False).epoch(1), strict=False):
        assert done < position
    same = unchanged(made)
    bound = made.bind(True)
    assert same() and cuda.current == "default" and cuda.captures == 2
    expected = BufferedBatches if kind is HostBatches else ResidentBatches
    assert isinstance(bound.batches, expected)


def test_a_capture_records_the_mode_that_it_is_for(cuda):
    for evaluation in (False, True):
        made = a_step(evaluation=evaluation)
        made.network.train(evaluation)  # the wrong one
        seen = []
        made.forward = lambda x, made=made, seen=seen: (
            seen.append(made.network.training),
            made.network(x),
        )[1]
        made.bind(True)
        assert set(seen) == {not evaluation}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_that_fails_leaves_an_eager_step(cuda, unchanged, kind, number):
    """Whichever of the two: one line says why, no tensor is changed, no graph keeps memory, the default stream is back."""
    cuda.fail, lines = {number: NO_GRAPH}, []
    made = a_step(kind)
    same = unchanged(made)
    bound = made.bind(True, lines.append)
    assert same() and not bound.graphs and bound.batches is made.batches
    assert cuda.current == "default" and cuda.emptied == 1
    (line,) = lines
    words = "no CUDA graph (operation not permitted when stream is capturing): every step"
    assert line.startswith(words)
    eager = a_step(kind)
    assert an_epoch(made, bound, 1) == an_epoch(eager, eager.bind(False), 1)


@pytest.mark.parametrize("number", [1, 2])
def test_out_of_memory_is_no_missing_graph(cuda, unchanged, number):
    """In any of its wordings (test_memory.py)."""
    cuda.fail = {number: RuntimeError("CUDA error: out of memory")}
    made = a_step()
    same = unchanged(made)
    with pytest.raises(RuntimeError, match="memory"):
        made.bind(True)
    assert same() and cuda.current == "default"


def test_an_error_of_the_step_itself_is_no_missing_graph(cuda, unchanged):
    """For example of torch.compile: raised as it is, once, before anything is captured."""
    made, calls = a_step(), []

    def fails(images):
        calls.append(len(images))
        raise RuntimeError("backend='inductor' raised: no C++ compiler")

    made.forward, same = fails, unchanged(made)
    with pytest.raises(RuntimeError, match="no C"):
        made.bind(True)
    assert calls == [16] and cuda.captures == 0 and same()


@pytest.mark.parametrize("capture", [True, False])
def test_the_cpu_is_a_few_steps_ahead_at_most(cuda, capture):
    """A signal is looked for after each step, and a step's time is asked for: at most IN_FLIGHT steps are not done then."""
    bound = a_step().bind(capture)
    behind = [done - cuda.waited for done in bound.epoch(1)]
    assert max(behind) == IN_FLIGHT == 3 and len(behind) == 5


def test_a_cpu_has_nothing_to_wait_for(cuda):
    made = a_step()
    made.batches.device = CPU
    an_epoch(made, made.bind(True), 1)
    assert cuda.recorded == cuda.captures == 0
