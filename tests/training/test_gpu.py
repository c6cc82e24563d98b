"""On a GPU: captured steps equal eager ones, deterministic runs repeat and continue exactly, and it learns as a CPU does."""

import os
import signal

import pytest
import torch
from plain import distance, invented_batches, training_step
from prove_resume import compare_runs
from tiny import ATTENTIONS, directory_of, run

from lcm.models.build import build_network
from lcm.training import checkpoint
from lcm.training.device import set_deterministic, set_precision
from lcm.training.epochs import train_epoch
from lcm.training.graphs import Eager

pytestmark = pytest.mark.gpu


def small(model, device, memory="fast"):
    overrides = {"layers": 8} if model == "resnet20" else {"layers": 7, "memory": memory}
    return build_network(model, "lcm2", seed=0, **overrides).to(device, memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model, memory", [("resnet20", "fast"), ("densenet40", "linear")])
def test_a_captured_step_is_the_eager_one(model, memory, precision):
    """Two epochs whose last batch is smaller: two graphs. The same kernels in the same order: the same bits."""
    cuda = torch.device("cuda:0")
    set_deterministic(True, cuda)
    try:
        networks = []
        for capture in (True, False):
            network, autocast = small(model, cuda, memory), set_precision(precision, cuda)
            step = training_step(network, invented_batches(70, 16), 0.01, autocast, capture)
            assert isinstance(step, Eager) != capture
            for epoch in (1, 2):
                train_epoch(step, epoch)
                assert step.step.totals[2] == 70
            networks.append(network.cpu())
        captured, eager = (network.state_dict() for network in networks)
        for name in eager:
            assert torch.equal(captured[name], eager[name]), name
    finally:
        set_deterministic(False, cuda)


def test_the_gpu_learns_what_the_cpu_learns():
    networks = [small("resnet20", device) for device in ("cuda:0", "cpu")]
    for network in networks:
        train_epoch(training_step(network, invented_batches(), 1e-3), 1)
    assert distance(*(network.cpu() for network in networks)) <= 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_on_a_gpu_deterministic_gives_the_same_bits(tiny, tmp_path, attention):
    """In processes of their own: cuBLAS reads CUBLAS_WORKSPACE_CONFIG when CUDA starts."""
    configs = [
        tiny(f"runs={tmp_path}/{part}", f"attention={attention}", "device=cuda", "deterministic=true") for part in "ab"
    ]
    for config in configs:
        ended = run(tmp_path, config)
        assert ended.code == 0, ended.err
    assert compare_runs(*map(directory_of, configs)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["cbam", "nonlocal", "lcm2"])
def test_on_a_gpu_a_continuation_inside_an_epoch_changes_nothing(tiny, tmp_path, attention):
    """The captured graph starts in the middle of an epoch's plan."""
    both = [f"attention={attention}", "device=cuda", "deterministic=true"]
    whole, parts = (
        tiny(f"runs={tmp_path}/whole", *both),
        tiny(f"runs={tmp_path}/parts", "checkpoint.every=4 steps", *both),
    )
    assert run(tmp_path, whole).code == 0

    def die():
        saves, original = [], checkpoint.save

        def save(*args):
            saves.append(original(*args))
            if len(saves) == 3:  # after step 8, inside epoch 2
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save = save

    assert run(tmp_path, parts, die).code == -signal.SIGKILL
    ended = run(tmp_path, parts)
    assert ended.code == 0 and "continuing  from epoch 2, step 2" in ended.out, ended.err
    assert compare_runs(directory_of(whole), directory_of(parts)) == []
