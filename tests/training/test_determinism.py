"""The same config and seed give the same bits; arms are true pairs; no number stops a run."""

import itertools
import os

import pytest
import torch
from plain import CPU, digest, fit, invented_batches, sgd, small_network
from tiny import ATTENTIONS, FewDigits, after_step, state_of

import train
from lcm.config.compose import load
from lcm.errors import NotFinite
from lcm.models.build import build_network
from lcm.training.graphs import HostBatches, Repeated
from lcm.training.schedule import make_optimizer
from lcm.training.state import Sums, TrainingState


def few_digits(attention, seed=0, epochs=1, **settings):
    """(network, Rows) after a training in the tiny setting."""
    data, network = FewDigits(), build_network("resnet20", attention, seed=seed, layers=8)
    batches = data.train(8, seed), data.test(8)
    return network, fit(network, *batches, epochs=epochs, seed=seed, **settings)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_twice_the_same_bits(attention):
    found = []
    for chance, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(chance)  # the global generator has no say
        network, run = few_digits(attention, seed)
        found.append((digest(network.state_dict()), run.rows))
    assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_random_layers_draw_anew_in_each_step_epoch_and_kind_by_the_seed():
    batches = HostBatches(invented_batches(32, 16), CPU)
    drawn = [
        torch.rand(1).item()
        for seed, kind, epoch in itertools.product((0, 1), ("train", "test"), (1, 2))
        for _ in Repeated(lambda *_: None, batches, (seed, kind)).epoch(epoch)
    ]
    assert len(set(drawn)) == 16


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_step_after_a_loss_that_is_no_number_changes_a_weight(optimizer):
    """As on a GPU, where the loss is not read before the end of the epoch."""
    layer, sums = torch.nn.Linear(3, 2), Sums("cpu")
    schedule = load("schedule", "cifar") | {"optimizer": optimizer}
    optimizer = make_optimizer(schedule, layer)
    optimizer.param_groups[0]["lr"].fill_(0.1)
    state = TrainingState(layer, optimizer, sums)
    step = train.training_step(layer, optimizer, sums, schedule)
    for factor in (1.0, float("nan"), 1.0):
        before = [tensor.clone() for tensor in state.tensors()[:-2]]  # but for the sums
        step(torch.ones(4, 3) * factor, torch.zeros(4, dtype=torch.int64))
        assert all(map(torch.equal, before, state.tensors())) == bool(sums.bad)
    with pytest.raises(NotFinite, match=r"^the training loss .* finite number in epoch 7; the"):
        state.snapshot(7)  # a checkpoint can be due before the loss is read


def test_of_equal_logits_the_first_is_the_answer():
    """In training, in the test and in scripts/evaluate.py; bf16 has many."""
    logits = torch.randn(4000, 100, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    for top5 in (False, True):
        sums = Sums("cpu", top5)
        sums.add(torch.tensor(0.0), logits, logits.softmax(1).max(1).indices)
        assert sums.means("test")["test_top1"] == 100


def test_what_is_no_number_is_neither_saved_nor_recorded():
    """A finite loss can have infinite gradients; a checkpoint after that step would keep them."""
    layer = torch.nn.Linear(3, 2)
    layer.register_buffer("mask", torch.full((2,), -torch.inf))  # is no weight
    state = TrainingState(layer, sgd(layer), Sums("cpu"))
    assert torch.equal(state.snapshot(1)["model"]["mask"], layer.mask)
    with torch.no_grad():
        layer.weight[0, 1] = float("inf")
    with pytest.raises(NotFinite, match="a weight stopped being a finite number in epoch 2"):
        state.snapshot(2)
    tests = invented_batches(10, 10, seed=None)
    tests.prepare = lambda raw, device: (torch.full((10, 3, 32, 32), torch.nan), raw[1])
    with pytest.raises(NotFinite, match="the test loss stopped being a finite number in epoch 1"):
        fit(small_network("resnet20"), invented_batches(32, 16), tests)


def test_a_diverged_run_is_failed_within_a_step_with_exit_code_1(tiny, ends, tmp_path):
    config = tiny(f"runs={tmp_path}", "schedule.learning_rate=1e30")
    too_late = after_step(3, lambda: os._exit(9))
    ended = ends(config, 1, "Lower schedule.learning_rate", prepare=too_late)
    words = "error: the training loss stopped being a finite number in epoch 1; the last checkpoint"
    state = state_of(config)
    assert ended.err.startswith(words) and state["message"] in ended.err
    assert state["state"] == "failed" and state["result"] is None
    ends(config, 1)  # and again, not silently something else
