"""Learning rates and optimisers: the paper's, and those of a schedule of one's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import CPU, distance, fit, in_dtype, invented_batches, small_network

from lcm.config.compose import load
from lcm.training.schedule import described, learning_rate, make_optimizer

# Section 4.1.2: 300 epochs, divided by 10 at 50 % and 75 %; 100 epochs, at epochs 30 and 60.
PAPER = {
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
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, *after])
    rates = [learning_rate(schedule | {"warm_up": 3}, epoch) for epoch in range(1, 11)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.04, 0.04, 0.04, 0.004, 0.004])
    assert learning_rate(schedule | {"warm_up": 1}, 1) == 0.2


@pytest.mark.parametrize(
    "momentum, asked, nesterov", [(0.9, True, True), (0.9, False, False), (0.0, True, False)]
)
def test_there_is_no_nesterov_without_momentum(momentum, asked, nesterov):
    """torch would refuse it."""
    schedule = load("schedule", "cifar") | {"momentum": momentum, "nesterov": asked}
    (group,) = make_optimizer(schedule, torch.nn.Linear(2, 2)).param_groups
    assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_a_schedule_in_words():
    schedule = load("schedule", "cifar")
    assert (
        described(schedule) == "learning rate 0.1 divided by 10 after 50 % and 75 % of the epochs"
    )
    own = {"decay": "cosine", "warm_up": 1, "label_smoothing": 0.1, "optimizer": "adamw"}
    words = "learning rate 0.1 falling as a cosine after a warm-up of 1 epoch, label smoothing 0.1"
    assert described(schedule | own) == f"{words}, AdamW"


def test_a_schedule_with_adamw_cosine_warm_up_and_smoothing_is_the_plain_loop():
    """Two batches an epoch, four epochs, float64; the plain loop is torch's own, written here."""
    schedule = {
        "epochs": 4, "optimizer": "adamw", "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.02,
        "decay": "cosine", "warm_up": 2, "label_smoothing": 0.1,
    }  # fmt: skip
    network, plain = (small_network("resnet20").double() for _ in range(2))
    batches = in_dtype(invented_batches(32, 16), torch.float64)
    rows = fit(network, batches, in_dtype(invented_batches(10, 10, None), torch.float64), 0.01,
               4, schedule=schedule).rows  # fmt: skip
    rates = [0.01 / 3, 0.02 / 3, 0.01, 0.01 * (1 + math.cos(math.pi / 2)) / 2]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    optimizer = torch.optim.AdamW(plain.parameters(), 0.01, (0.8, 0.95), 1e-7, 0.02)
    plain.train()
    for epoch, value in enumerate(rates):
        optimizer.param_groups[0]["lr"] = torch.tensor(value).item()  # rates are float32
        for images, labels in (batches.prepare(raw, CPU) for raw in batches.iterate(epoch + 1)):
            loss = F.cross_entropy(plain(images.contiguous()), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert distance(network, plain) <= 1e-10
