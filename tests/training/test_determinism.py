"""The same config and seed give the same bits; workers and the place of a continuation change nothing; arms are true pairs."""

import json
import signal

import pytest
import torch
from plain import digest, evaluation_step, training_step
from prove_resume import compare_runs
from tiny import ATTENTIONS, FewDigits, after_step, die, directory_of, run

from lcm.config.options import load
from lcm.errors import NotFinite
from lcm.models.build import build_network
from lcm.training import checkpoint
from lcm.training.epochs import evaluate, learning_rate, train_epoch


def few_digits(attention, seed=0):
    """(training step, evaluation step) of the tiny setting."""
    data, network = FewDigits(), build_network("resnet20", attention, seed=seed, layers=8)
    return training_step(network, data.train(8, seed)), evaluation_step(network, data.test(8))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_twice_the_same_bits(attention):
    found = []
    for chance in (1, 2):
        torch.manual_seed(chance)  # the global generator has no say ...
        step, test = few_digits(attention)
        before = torch.random.get_rng_state()
        numbers = train_epoch(step, 1) | evaluate(test, 1)
        assert torch.equal(torch.random.get_rng_state(), before)  # ... and training leaves it alone
        found.append((digest(step.step.network.state_dict()), numbers))
    assert found[0] == found[1]
    step, test = few_digits(attention, seed=1)
    assert train_epoch(step, 1) | evaluate(test, 1) != numbers


def test_arms_of_one_seed_share_their_backbone_and_their_images(monkeypatch):
    """All seven attentions: the same initialisation wherever both have it, the same images in the same order."""
    first, seen = {}, {}
    for attention in ATTENTIONS:
        step, _ = few_digits(attention)
        first[attention] = step.step.network.state_dict()
        seen[attention], take = [], step.feed.take

        def taken(*args, seen=seen[attention], take=take):
            images, labels = take(*args)
            seen.append(digest({"images": images, "labels": labels}))
            return images, labels

        first[attention] = {name: tensor.clone() for name, tensor in first[attention].items()}
        monkeypatch.setattr(step.feed, "take", taken)
        for epoch in (1, 2):
            train_epoch(step, epoch)
    assert len(seen["none"]) == len(set(seen["none"])) == 12
    assert all(images == seen["none"] for images in seen.values())
    backbone = first["none"]
    for attention, weights in first.items():
        assert set(backbone) <= set(weights)
        assert digest({name: weights[name] for name in backbone}) == digest(backbone), attention
        assert attention == "none" or set(weights) > set(backbone)


def test_workers_and_a_continuation_inside_an_epoch_change_nothing(tiny, tmp_path):
    """data.workers=0, 2, 4; and killed in the middle of epoch 2, continued with another number of workers."""
    configs = [tiny(f"runs={tmp_path}/{workers}", f"data.workers={workers}") for workers in (0, 2, 4)]
    for config in configs:
        ended = run(tmp_path, config)
        assert ended.code == 0, ended.err
    for config in configs[1:]:
        assert compare_runs(directory_of(configs[0]), directory_of(config)) == []

    parts = [tiny(f"runs={tmp_path}/parts", f"data.workers={w}", "checkpoint.every=3 steps") for w in (4, 0)]
    assert run(tmp_path, parts[0], after_step(10, die)).code == -signal.SIGKILL
    saved = checkpoint.read(directory_of(parts[0]) / checkpoint.NAME)
    assert (saved["epoch"], saved["index"]) == (2, 3)
    assert run(tmp_path, parts[1]).code == 0
    assert compare_runs(directory_of(configs[0]), directory_of(parts[1])) == []


def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoiled():
    step, _ = few_digits("lcm2")
    take, before, done = step.feed.take, [], []

    def taken(*args):
        images, labels = take(*args)
        if len(done) == 3:  # in the fourth step
            before.extend(tensor.clone() for tensor in (*step.step.network.parameters(), *step.step.momenta.values()))
            images = images * float("nan")
        return images, labels

    step.feed.take = taken
    with pytest.raises(NotFinite, match=r"the training loss stopped being a finite number in epoch 1.*learning_rate"):
        train_epoch(step, 1, after_step=done.append)
    assert done == [1, 2, 3]  # it went no further
    assert all(map(torch.equal, before, (*step.step.network.parameters(), *step.step.momenta.values())))
    with pytest.raises(NotFinite, match="the training loss stopped being a finite number in epoch 7"):
        step.step.snapshot(7)  # on a GPU a checkpoint can be due before the loss was looked at


def test_what_is_no_number_is_neither_saved_nor_recorded():
    """A finite loss can have gradients that are not; a checkpoint after that step would keep the wreck."""
    step, test = few_digits("none")
    with torch.no_grad():
        step.step.network.fc.weight[3, 5] = float("inf")
    with pytest.raises(NotFinite, match="a weight stopped being a finite number in epoch 2"):
        step.step.snapshot(2)
    with pytest.raises(NotFinite, match="the test loss stopped being a finite number in epoch 2"):
        evaluate(test, 2)


def test_a_diverged_run_is_failed_with_exit_code_1(tiny, tmp_path):
    config = tiny(f"runs={tmp_path}", "schedule.learning_rate=1e30")
    ended = run(tmp_path, config)
    assert ended.code == 1 and "Traceback" not in ended.err and "Lower schedule.learning_rate" in ended.err, ended
    assert ended.err.startswith(
        "error: the training loss stopped being a finite number in epoch 1; the last checkpoint"
    )
    state = json.loads((directory_of(config) / "run.json").read_text())
    assert state["state"] == "failed" and state["message"] in ended.err and state["result"] is None
    assert run(tmp_path, config).code == 1  # and again, not silently something else


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
        for epoch in epochs:
            assert learning_rate(schedule, epoch) == pytest.approx(rate, rel=1e-15), epoch


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 10, 40, 100, 300])
def test_shares_that_are_no_whole_epochs_round_up(epochs):
    schedule = load("schedule", "cifar") | {"epochs": epochs, "divide_at": [0.1, 0.3, 0.5, 0.7]}
    for epoch in range(1, epochs + 1):
        passed = sum((epoch - 1) * 10 >= share * epochs for share in (1, 3, 5, 7))
        assert learning_rate(schedule, epoch) == 0.1 / 10**passed, epoch
