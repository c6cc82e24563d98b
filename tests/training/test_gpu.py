"""On a GPU: captured steps equal eager ones, deterministic runs repeat and continue exactly, and it learns as a CPU does."""

import signal

import pytest
import torch
from plain import distance, invented_batches, small_network, training_step
from tiny import compare_runs, die, directory_of

from lcm.config.compose import choices
from lcm.models.build import build_network
from lcm.training import checkpoint
from lcm.training.device import set_precision
from lcm.training.epochs import train_epoch
from lcm.training.graphs import Eager

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda:0")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model, keys", [("resnet20", {}), ("densenet40", {}), ("densenet40", {"memory": "linear"})]
)
def test_a_captured_step_is_the_eager_one(deterministic, model, keys, precision):
    """Two epochs whose last batch is smaller: two graphs. The same kernels in the same order: the same bits."""
    states = []
    for capture in (True, False):
        network, autocast = (
            build_network(model, "lcm2", seed=0, **keys),
            set_precision(precision, CUDA),
        )
        network.to(CUDA, memory_format=torch.channels_last)
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


@pytest.mark.parametrize("attention", choices("attention"))
def test_deterministic_gives_the_same_bits_also_when_continued_inside_an_epoch(
    tiny, ends, tmp_path, attention
):
    """In processes of their own: cuBLAS reads CUBLAS_WORKSPACE_CONFIG when CUDA starts.

    The captured graph starts in the middle of an epoch's plan.
    """
    words = [
        f"attention={attention}",
        "device=cuda",
        "deterministic=true",
        "checkpoint.every=4 steps",
    ]
    whole, parts = (tiny(f"runs={tmp_path}/{name}", *words) for name in ("whole", "parts"))
    ends(whole, 0)

    def die_after_step_8():
        saves, original = [], checkpoint.save

        def save(*args):
            saves.append(original(*args))
            if len(saves) == 3:  # inside epoch 2
                die()

        checkpoint.save = save

    ends(parts, -signal.SIGKILL, prepare=die_after_step_8)
    assert "continuing  from epoch 2, step 2" in ends(parts, 0).out
    assert compare_runs(directory_of(whole), directory_of(parts)) == []
