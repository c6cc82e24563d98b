"""On a GPU: captured steps equal eager ones, deterministic runs repeat and continue exactly, and it
learns as a CPU does.
"""

import signal

import pytest
import torch
from plain import distance, fit, invented_batches, small_network
from tiny import NewProcess, compare_runs, die, directory_of, train_in_new

from lcm.config import compose
from lcm.config.compose import choices
from lcm.models.build import build_network
from lcm.training import checkpoint, graphs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model, keys", [("resnet20", {}), ("densenet40", {}), ("densenet40", {"memory": "linear"})]
)
def test_a_captured_step_is_the_eager_one(monkeypatch, deterministic, model, keys, precision):
    """Two epochs whose last batch is smaller: two graphs.

    The same kernels in the same order: the same bits.
    """
    states, watched = [], []
    original = graphs.Repeated.__init__

    def watch(self, *args):
        original(self, *args)
        watched.append(bool(self.graphs))

    monkeypatch.setattr(graphs.Repeated, "__init__", watch)
    for capture in (True, False):
        network = build_network(model, "lcm2", seed=0, **keys)
        settings = {"device": "cuda", "deterministic": True, "precision": precision}
        run = fit(
            network, invented_batches(70, 16), rate=0.01, epochs=2, capture=capture, **settings
        )
        assert watched[-2:] == [capture, capture] and run.training.sums.values[2] == 70
        states.append(network.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_the_gpu_learns_what_the_cpu_learns():
    networks = [small_network("resnet20") for _ in range(2)]
    for network, device in zip(networks, ("cuda", "cpu"), strict=True):
        fit(network, invented_batches(), rate=1e-3, device=device)
    assert distance(*(network.cpu() for network in networks)) <= 1e-3


def die_in_epoch_2():
    """With its third checkpoint."""
    saves, original = [], checkpoint.save

    def save(*args):
        saves.append(original(*args))
        if len(saves) == 3:
            die()

    checkpoint.save = save


@pytest.mark.parametrize("attention", choices("attention"))
def test_deterministic_gives_the_same_bits_also_when_continued_inside_an_epoch(
    tiny, tmp_path, attention
):
    """In processes of their own: cuBLAS reads CUBLAS_WORKSPACE_CONFIG when CUDA starts.

    The captured graph starts in the middle of an epoch's plan.
    """

    def trained(config, code, prepare=None):
        ended = NewProcess(tmp_path, train_in_new, compose.CONFIGS, config, prepare).wait()
        assert ended.code == code, ended
        return ended.out

    words = [
        f"attention={attention}",
        "device=cuda",
        "deterministic=true",
        "checkpoint.every=4 steps",
    ]
    whole, parts = (tiny(f"runs={tmp_path}/{name}", *words) for name in ("whole", "parts"))
    trained(whole, 0)
    trained(parts, -signal.SIGKILL, die_in_epoch_2)
    assert "continuing  from epoch 2, step 2" in trained(parts, 0)
    assert compare_runs(directory_of(whole), directory_of(parts)) == []
