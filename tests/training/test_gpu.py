"""On a GPU: captured steps equal eager ones, deterministic runs repeat and continue exactly, and it learns as a CPU does."""

import signal

import pytest
import torch
from plain import distance, invented_batches, small_network, training_step
from prove_resume import compare_runs
from tiny import ATTENTIONS, die, directory_of, run

from lcm.training import checkpoint
from lcm.training.device import set_deterministic, set_precision
from lcm.training.epochs import train_epoch
from lcm.training.graphs import Eager

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")
SAME_BITS = ("device=cuda", "deterministic=true")


@pytest.fixture
def deterministic():
    set_deterministic(True, CUDA)
    yield
    set_deterministic(False, CUDA)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model, memory", [("resnet20", "fast"), ("densenet40", "linear")])
def test_a_captured_step_is_the_eager_one(deterministic, model, memory, precision):
    """Two epochs whose last batch is smaller: two graphs. The same kernels in the same order: the same bits."""
    states = []
    for capture in (True, False):
        network, autocast = small_network(model, memory, CUDA), set_precision(precision, CUDA)
        step = training_step(network, invented_batches(70, 16), 0.01, autocast, capture)
        assert isinstance(step, Eager) != capture
        for epoch in (1, 2):
            train_epoch(step, epoch)
            assert step.step.totals[2] == 70
        states.append(network.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_the_gpu_learns_what_the_cpu_learns():
    networks = [small_network("resnet20", device=device) for device in (CUDA, "cpu")]
    for network in networks:
        train_epoch(training_step(network, invented_batches(), 1e-3), 1)
    assert distance(*(network.cpu() for network in networks)) <= 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_deterministic_gives_the_same_bits(tiny, ends, tmp_path, attention):
    """In processes of their own: cuBLAS reads CUBLAS_WORKSPACE_CONFIG when CUDA starts."""
    configs = [tiny(f"runs={tmp_path}/{part}", f"attention={attention}", *SAME_BITS) for part in "ab"]
    for config in configs:
        ends(config, 0)
    assert compare_runs(*map(directory_of, configs)) == []


@pytest.mark.parametrize("attention", ["cbam", "nonlocal", "lcm2"])
def test_a_continuation_inside_an_epoch_changes_nothing(tiny, ends, tmp_path, attention):
    """The captured graph starts in the middle of an epoch's plan."""
    words = [f"attention={attention}", *SAME_BITS]
    whole, parts = (
        tiny(f"runs={tmp_path}/whole", *words),
        tiny(f"runs={tmp_path}/parts", "checkpoint.every=4 steps", *words),
    )
    ends(whole, 0)

    def die_after_step_8():
        saves, original = [], checkpoint.save

        def save(*args):
            saves.append(original(*args))
            if len(saves) == 3:  # inside epoch 2
                die()

        checkpoint.save = save

    assert run(tmp_path, parts, die_after_step_8).code == -signal.SIGKILL
    assert "continuing  from epoch 2, step 2" in ends(parts, 0).out
    assert compare_runs(directory_of(whole), directory_of(parts)) == []
