"""The same config and seed give the same bits; arms are true pairs; what is no number stops a run."""

import pytest
import torch
from plain import digest, evaluation_step, training_step
from tiny import ATTENTIONS, FewDigits, state_of

from lcm.config.compose import load
from lcm.errors import NotFinite
from lcm.models.build import build_network
from lcm.training.epochs import evaluate, learning_rate, train_epoch


def few_digits(attention, seed=0):
    """(training step, evaluation step) of the tiny setting."""
    data, network = FewDigits(), build_network("resnet20", attention, seed=seed, layers=8)
    return training_step(network, data.train(8, seed)), evaluation_step(network, data.test(8))


def watch_batches(step, change=lambda images: images):
    """A list that gets the digest of every batch that a training step takes from now on; `change` is applied to its images."""
    seen, take = [], step.feed.take

    def taken(*args):
        images, labels = take(*args)
        seen.append(digest({"images": images, "labels": labels}))
        return change(images), labels

    step.feed.take = taken
    return seen


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_twice_the_same_bits(attention):
    found = []
    for chance, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(chance)  # the global generator has no say ...
        step, test = few_digits(attention, seed)
        before = torch.random.get_rng_state()
        numbers = train_epoch(step, 1) | evaluate(test, 1)
        assert torch.equal(torch.random.get_rng_state(), before)  # ... and training leaves it alone
        found.append((digest(step.step.network.state_dict()), numbers))
    assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_arms_of_one_seed_get_the_same_images():
    """All seven attentions: the same images in the same order (tests/modules: the same initialisation)."""
    seen = []
    for attention in ATTENTIONS:
        step, _ = few_digits(attention)
        seen.append(watch_batches(step))
        for epoch in (1, 2):
            train_epoch(step, epoch)
    assert len(seen[0]) == len(set(seen[0])) == 12 and all(images == seen[0] for images in seen)


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoiled():
    step, _ = few_digits("lcm2")
    trained, before, done = [*step.step.network.parameters(), *step.step.momenta.values()], [], []

    def spoil(images):
        if len(done) != 3 or before:
            return images
        before.extend(tensor.clone() for tensor in trained)
        return images * float("nan")  # in the fourth step

    watch_batches(step, spoil)
    with pytest.raises(
        NotFinite,
        match=r"the training loss stopped being a finite number in epoch 1.*learning_rate",
    ):
        train_epoch(step, 1, after_step=done.append)
    assert done == [1, 2, 3]  # it went no further ...
    step(4)  # ... where a GPU does, and its loss is finite again
    assert all(map(torch.equal, before, trained))
    with pytest.raises(
        NotFinite, match="the training loss stopped being a finite number in epoch 7"
    ):
        step.step.snapshot(7)  # on a GPU a checkpoint can be due before the loss is read


def test_what_is_no_number_is_neither_saved_nor_recorded():
    """A finite loss can have gradients that are not; a checkpoint after that step would keep them."""
    step, test = few_digits("none")
    with torch.no_grad():
        step.step.network.fc.weight[3, 5] = float("inf")
    with pytest.raises(NotFinite, match="a weight stopped being a finite number in epoch 2"):
        step.step.snapshot(2)
    with pytest.raises(NotFinite, match="the test loss stopped being a finite number in epoch 2"):
        evaluate(test, 2)


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
