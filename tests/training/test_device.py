"""The machine: what a GPU is told, without one; threads=auto; memory of a finished run."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lcm.attention.layers import ComparedMaximum, maximum
from lcm.config.compose import choices
from lcm.errors import UserError
from lcm.models.build import build_network
from lcm.runs.worker import run_one
from lcm.training import device
from lcm.training.device import set_precision

CUDA = torch.device("cuda:0")


def test_emulated_bf16_is_refused(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    with pytest.raises(UserError, match="an old GPU has no bf16; set precision=fp32"):
        set_precision("bf16", CUDA)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_on_a_processor_have_the_precision(precision, dtype, monkeypatch):
    monkeypatch.setattr(device, "cpu_info", lambda key: "avx512_bf16")
    with set_precision(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_determinism_does_not_fill_new_tensors(deterministic):
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape, dim", [((5, 7), 1), ((3, 20, 4), 1), ((2, 5, 6, 8), -1)])
def test_the_gradient_of_a_maximum_by_comparison(shape, dim, dtype):
    """The bits and the layout of `max`, with equal maxima too."""
    x = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    values, expected = ComparedMaximum.apply(ours, dim), theirs.max(dim).values
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.autograd.backward([values, expected], [gradient, gradient])
    assert torch.equal(values, expected) and torch.equal(ours.grad, theirs.grad)
    assert ours.grad.dtype == dtype and ours.grad.stride() == theirs.grad.stride()


class NoScatter(TorchDispatchMode):
    """Refuses operations whose deterministic kernels on a GPU sort or wait."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        words = ("scatter", "index_put", "index_add")
        assert not any(word in str(operation) for word in words), operation
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", choices("attention"))
def test_deterministic_training_never_scatters(attention, deterministic):
    network = build_network("resnet20", attention, layers=8)
    with NoScatter():
        torch.nn.functional.cross_entropy(
            network(torch.randn(4, 3, 32, 32)), torch.arange(4)
        ).backward()


def test_only_deterministic_training_compares(deterministic):
    x = torch.randn(3, 4, requires_grad=True)
    assert maximum(x, 1).grad_fn.name() == "ComparedMaximumBackward"
    torch.use_deterministic_algorithms(False)
    with pytest.raises(AssertionError, match="scatter"), NoScatter():
        maximum(x, 1).sum().backward()


def test_memory_of_a_finished_run_is_released(monkeypatch, tmp_path):
    held, emptied = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[0]()))

    def train(config):
        tensor = torch.zeros(1)
        tensor.itself = tensor  # a reference cycle, as a network and its optimizer have some
        held.append(weakref.ref(tensor))

    assert run_one(train, {"run_directory": tmp_path, "compile": False}).state == "finished"
    assert emptied == [None]


@pytest.mark.parametrize(
    "threads, omp, number",
    [
        ("auto", "", 8),
        ("auto", "3", 3),
        ("auto", "64", 8),
        ("auto", "0", 1),
        ("auto", " 4 , 2", 4),  # the first is that of the outermost level
        ("auto", "many", 8),  # no number: OpenMP ignores it, too
        (3, "2", 3),
    ],
)
def test_threads(monkeypatch, threads, omp, number):
    """OMP_NUM_THREADS is an upper bound of `auto`."""
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "available_processors", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    try:
        assert device.set_threads(threads) == torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_a_later_run_of_the_process_may_be_deterministic(monkeypatch):
    """cuBLAS reads its variable once: it is there from the first run on, whatever that run asks."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    device.set_deterministic(False, torch.device("cpu"))
    assert device.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    "quota, processors",
    [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), (None, 6)],
)
def test_affinity_and_quota(monkeypatch, quota, processors):
    def read_text(path):
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return f"{quota}\n"

    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(device.Path, "read_text", read_text)
    assert device.available_processors() == processors
