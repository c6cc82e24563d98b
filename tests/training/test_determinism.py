"""The same config and seed give the same bits; arms are true pairs; what is no number stops a run."""

import math
import random

import numpy as np
import pytest
import torch
from plain import digest, fit
from tiny import ATTENTIONS, FewDigits, state_of

from lcm.config.compose import load
from lcm.errors import NotFinite
from lcm.models.build import build_network
from lcm.training.graphs import HostBatches
from lcm.training.schedule import learning_rate
from lcm.training.state import Sums, TrainingState


def few_digits(attention, seed=0, epochs=1, **settings):
    """(network, Rows) after a training in the tiny setting."""
    data, network = FewDigits(), build_network("resnet20", attention, seed=seed, layers=8)
    batches = data.train(8, seed), data.test(8)
    return network, fit(network, *batches, epochs=epochs, seed=seed, **settings)


@pytest.fixture
def batches(monkeypatch):
    """A list that gets the digest of every training batch; `change` in it is applied to the images."""
    seen, take = Batches(), HostBatches.take

    def taken(self, *args):
        images, labels = take(self, *args)
        if self.batches.seed is not None:
            seen.append(digest({"images": images, "labels": labels}))
            images = seen.change(images)
        return images, labels

    monkeypatch.setattr(HostBatches, "take", taken)
    return seen


class Batches(list):
    change = staticmethod(lambda images: images)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_twice_the_same_bits(attention):
    found = []
    for chance, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(chance)  # the global generator has no say
        network, run = few_digits(attention, seed)
        found.append((digest(network.state_dict()), run.rows))
    assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]


class Noisy(torch.nn.Module):
    """What a module of one's own may draw: dropout, numpy's and Python's numbers, in evaluation too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        x = torch.nn.functional.dropout(self.layer(x), 0.2, self.training)
        return x + 0.1 * (torch.rand_like(x) + np.random.rand() + random.random())


def test_random_layers_give_the_same_bits_alone_continued_and_after_other_runs():
    found = []
    for parts in ([1, 2, 3], [1], [2, 3]):
        torch.manual_seed(len(parts)), np.random.seed(len(parts)), random.seed(len(parts))
        if parts != [2, 3]:  # otherwise it goes on from epoch 1
            network = build_network("resnet20", "none", seed=0, layers=8)
            network.fc = Noisy(network.fc)
        data = FewDigits()
        places = [(epoch, 0) for epoch in parts]
        run = fit(
            network, data.train(8, 0), data.test(8), epochs=places, schedule={"momentum": 0.0}
        )
        found.append((run.rows, digest(network.state_dict())))
    whole, first, rest = found
    assert first[0] + rest[0] == whole[0] and rest[1] == whole[1]
    assert len({row["test_loss"] for row in whole[0]}) == 3


def test_arms_of_one_seed_get_the_same_images(batches):
    """All seven attentions: the same images in the same order (tests/modules: the same initialisation)."""
    seen = []
    for attention in ATTENTIONS:
        few_digits(attention, epochs=2)
        seen.append(list(batches))
        batches.clear()
    assert len(seen[0]) == len(set(seen[0])) == 12 and all(images == seen[0] for images in seen)


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoiled(batches):
    done, weights = [], []
    network = build_network("resnet20", "lcm2", seed=0, layers=8)

    def spoil(images):
        if len(batches) != 4:
            return images
        weights.extend(tensor.clone() for tensor in network.parameters())
        return images * float("nan")  # in the fourth step

    batches.change = spoil
    data = FewDigits()
    words = r"the training loss stopped being a finite number in epoch 1.*learning_rate"
    with pytest.raises(NotFinite, match=words):
        fit(network, data.train(8, 0), data.test(8), act=lambda epoch, step: done.append(step))
    assert done == [1, 2, 3] and weights
    assert all(map(torch.equal, weights, network.parameters()))


def test_no_step_after_a_loss_that_is_no_number_changes_a_weight():
    """As on a GPU, where the loss is not read before the end of the epoch."""
    layer = torch.nn.Linear(3, 2)
    sums = Sums("cpu")
    optimizer = torch.optim.SGD(layer.parameters(), torch.tensor(0.1), 0.9, fused=True)
    optimizer.found_inf = sums.bad
    state = TrainingState(layer, optimizer, sums)
    for factor in (1.0, float("nan"), 1.0):
        logits = layer(torch.ones(4, 3) * factor)
        loss = logits.square().mean()
        sums.add(loss.detach(), logits, torch.zeros(4, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        before = [tensor.clone() for tensor in layer.parameters()]
        optimizer.step()
        changed = not all(map(torch.equal, before, layer.parameters()))
        assert changed == (not sums.bad)
    with pytest.raises(
        NotFinite, match="the training loss stopped being a finite number in epoch 7"
    ):
        state.snapshot(7)  # a checkpoint can be due before the loss is read


def test_what_is_no_number_is_neither_saved_nor_recorded():
    """A finite loss can have gradients that are not; a checkpoint after that step would keep them."""
    layer, sums = torch.nn.Linear(3, 2), Sums("cpu", top5=True)
    state = TrainingState(layer, torch.optim.SGD(layer.parameters(), 0.1), Sums("cpu"))
    with torch.no_grad():
        layer.weight[0, 1] = float("inf")
    with pytest.raises(NotFinite, match="a weight stopped being a finite number in epoch 2"):
        state.snapshot(2)
    logits = layer(torch.ones(4, 3))
    sums.add(logits.sum(), logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(NotFinite, match="the test loss stopped being a finite number in epoch 2"):
        sums.check("the test loss", 2)


def test_a_diverged_run_is_failed_with_exit_code_1(tiny, ends, tmp_path):
    config = tiny(f"runs={tmp_path}", "schedule.learning_rate=1e30")
    ended = ends(config, 1, "Lower schedule.learning_rate")
    words = "error: the training loss stopped being a finite number in epoch 1; the last checkpoint"
    state = state_of(config)
    assert ended.err.startswith(words) and state["message"] in ended.err
    assert state["state"] == "failed" and state["result"] is None
    ends(config, 1)  # and again, not silently something else


PAPER = {  # section 4.1.2: 300 epochs, divided by 10 at 50 % and 75 %; 100 epochs, divided by 10 at epochs 30 and 60
    "cifar": {0.1: range(1, 151), 0.01: range(151, 226), 0.001: range(226, 301)},
    "mini_imagenet": {0.1: range(1, 31), 0.01: range(31, 61), 0.001: range(61, 101)},
    "short": {0.1: range(1, 6), 0.01: range(6, 9), 0.001: range(9, 11)},
}


@pytest.mark.parametrize("name", PAPER)
def test_the_learning_rate_is_the_papers(name):
    schedule = load("schedule", name)
    assert schedule["epochs"] == sum(map(len, PAPER[name].values()))
    for rate, epochs in PAPER[name].items():
        assert [learning_rate(schedule, epoch) for epoch in epochs] == pytest.approx(
            [rate] * len(epochs), rel=1e-15
        )


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 40, 100, 300])
def test_shares_that_are_no_whole_epochs_round_up(epochs):
    schedule = load("schedule", "cifar") | {"epochs": epochs, "divide_at": [0.1, 0.3, 0.5, 0.7]}
    for epoch in range(1, epochs + 1):
        passed = sum((epoch - 1) * 10 >= share * epochs for share in (1, 3, 5, 7))
        assert learning_rate(schedule, epoch) == 0.1 / 10**passed, epoch


def test_a_warm_up_rises_linearly_and_a_cosine_falls_from_the_rate_towards_zero():
    schedule = load("schedule", "cifar") | {"epochs": 10, "learning_rate": 0.4}
    cosine = schedule | {"decay": "cosine", "warm_up": 2}
    rates = [learning_rate(cosine, epoch) for epoch in range(1, 11)]
    after = [0.2 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates == pytest.approx([0.2, 0.4, *after])
    stepped = schedule | {"warm_up": 4}
    rates = [learning_rate(stepped, epoch) for epoch in range(1, 11)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.04, 0.04, 0.04, 0.004, 0.004])
