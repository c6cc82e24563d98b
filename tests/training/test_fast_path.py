"""The fast path against plain PyTorch: the same steps, the same weights, the same results (tests/data: the same batches)."""

import pytest
import torch
import torch.nn.functional as F
from plain import CPU, distance, evaluation_step, invented_batches, plain_evaluation, plain_training, sgd, training_step
from tiny import run

from lcm.config.options import load as load_config
from lcm.models.build import build_network
from lcm.training.device import keep_pages
from lcm.training.epochs import evaluate, learning_rate, train_epoch
from lcm.training.graphs import Eager, HostFeed, ResidentFeed
from lcm.training.step import TestStep, TrainStep


def small(model, attention="lcm2", memory="fast"):
    overrides = {"layers": 8} if model == "resnet20" else {"layers": 7, "memory": memory}
    return build_network(model, attention, seed=0, **overrides).to(memory_format=torch.channels_last)


def trained_fast(network, batches, rate, **options):
    """The network after one epoch of the project's; in its own dtype."""
    dtype = next(network.parameters()).dtype
    compiled = None if dtype == torch.float32 else lambda images: network(images.to(dtype))
    step = training_step(network, batches, rate, compiled=compiled, **options)
    train_epoch(step, 1)
    assert step.step.totals[2] == batches.images
    return network


# Training amplifies differences. In float64 the fast path stays with the plain one at the protocol's own rate. In float32 no
# two orders of summation stay together there: a ReLU's input of 1e-8 changes its sign, and after 20 steps at 0.1 plain eager
# networks that differ in their memory layout alone are 1e-2 apart. Hence the smaller rate, and the test that follows.
@pytest.mark.parametrize(
    "dtype, rate, tolerance", [(torch.float64, 0.1, 1e-10), (torch.float32, 1e-3, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("model, memory", [("resnet20", "fast"), ("densenet40", "fast"), ("densenet40", "linear")])
def test_twenty_steps(model, memory, dtype, rate, tolerance):
    """Channels-last, allocator, batches from bytes, fused SGD, linear memory, folded evaluation: the plain path's weights."""
    keep_pages()
    network = trained_fast(small(model, memory=memory).to(dtype), invented_batches(), rate)
    plain = plain_training(small(model).to(dtype), invented_batches(), rate)
    assert distance(network, plain) <= tolerance
    if dtype == torch.float32:
        test = invented_batches(50, 25, seed=None)
        assert evaluate(evaluation_step(network, test), 1) == pytest.approx(plain_evaluation(plain, test), rel=1e-3)


def test_at_the_full_rate_float32_wanders_as_any_change_of_order_does():
    network = trained_fast(small("resnet20"), invented_batches(), 0.1)
    plain = plain_training(small("resnet20"), invented_batches())
    truth = plain_training(small("resnet20").double(), invented_batches())
    assert distance(network.double(), truth) <= 10 * distance(plain.double(), truth)


def test_resident_feed_shows_the_batches_of_the_host():
    """The GPU's path, run on the CPU: the same bits, whatever the epoch, the place in it and the size of the last batch."""
    batches = invented_batches(70, 16)
    host, resident = HostFeed(batches, CPU), ResidentFeed(batches, CPU)
    assert (host.steps, host.images) == (resident.steps, resident.images) == (5, 70)
    for epoch, start in ((0, 0), (7, 0), (7, 3)):
        host.start(epoch, start), resident.start(epoch, start)
        for step in range(start, host.steps):
            (theirs, their_labels), (ours, our_labels) = host.take(), resident.take(resident.size(step))
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
            assert torch.equal(our_labels, their_labels)


def test_resident_feed_trains_to_the_same_bits():
    host = training_step(small("resnet20"), invented_batches())
    resident = training_step(small("resnet20"), invented_batches())
    resident = Eager(resident.step, ResidentFeed(resident.feed.batches, CPU))
    assert train_epoch(host, 1) == train_epoch(resident, 1)
    host, resident = (step.step.network.state_dict() for step in (host, resident))
    assert all(torch.equal(host[name], resident[name]) for name in host)


def test_the_first_step_of_sgd_and_its_stop():
    """Momenta that start at zero are torch's own first step; `bad` keeps weights and momenta as they are."""
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10)).double() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    images, labels = torch.randn(4, 3, 1, 1, dtype=torch.float64), torch.arange(4)
    step = TrainStep(networks[0], sgd(networks[0], fused=True), torch.autocast("cpu", enabled=False), CPU)
    assert set(step.momenta) == {"1.weight", "1.bias"} and not any(m.any() for m in step.momenta.values())
    plain = sgd(networks[1])
    for rate in (0.1, 0.01):
        step.optimizer.param_groups[0]["lr"].fill_(rate)
        plain.param_groups[0]["lr"] = torch.tensor(rate)
        step(images, labels)
        plain.zero_grad()
        F.cross_entropy(networks[1](images), labels).backward()
        plain.step()
        torch.testing.assert_close(networks[0][1].weight, networks[1][1].weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(step.momenta["1.bias"], plain.state[networks[1][1].bias]["momentum_buffer"])
    before = [tensor.clone() for tensor in (*networks[0].parameters(), *step.momenta.values())]
    step(images * float("nan"), labels)
    step(images, labels)
    assert step.bad
    assert all(map(torch.equal, before, (*networks[0].parameters(), *step.momenta.values())))


def digits_top1(seed, autocast):
    from lcm.data import Digits

    digits, schedule = Digits(), load_config("schedule", "digits") | {"epochs": 4}
    network = build_network("resnet20", "lcm2", seed=seed).to(memory_format=torch.channels_last)
    step = training_step(network, digits.train(64, seed), autocast=autocast)
    for epoch in range(1, 5):
        step.step.optimizer.param_groups[0]["lr"].fill_(learning_rate(schedule, epoch))
        train_epoch(step, epoch)
    return evaluate(evaluation_step(network, digits.test(100), autocast), 4)["test_top1"]


@pytest.mark.slow
def test_bf16_learns_the_digits_as_float32_does():
    """Within the spread of the seeds. Where the processor has no bf16 it is emulated: the same rounding, slowly."""
    bf16 = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    plain = torch.tensor([digits_top1(seed, None) for seed in range(4)])
    half = torch.tensor([digits_top1(seed, bf16) for seed in range(4)])
    assert plain.mean() > 95
    assert (plain.mean() - half.mean()).abs() <= plain.std().clamp_min(0.5)


def test_folded_evaluation_follows_the_weights():
    """The network folded before an epoch is not what is evaluated after it."""
    network, test = small("resnet20"), invented_batches(50, 25, seed=None)
    step = evaluation_step(network, test)
    before = evaluate(step, 0)
    train_epoch(training_step(network, invented_batches()), 1)
    after = evaluate(step, 1)
    assert after == pytest.approx(plain_evaluation(network, test), rel=1e-3) and after != before
    assert isinstance(step.step, TestStep) and step.step.forward is not network


@pytest.mark.parametrize("switch, layout", [("true", torch.channels_last), ("false", torch.contiguous_format)])
def test_channels_last_is_true_to_its_word(tiny, tmp_path, switch, layout):
    """Weights and images, in training and evaluation: no convolution has to convert."""

    def watch():
        original = torch.nn.Conv2d.forward

        def watched(self, x):
            assert len(x) == 1 or all(t.is_contiguous(memory_format=layout) for t in (x, self.weight)), x.stride()
            return original(self, x)

        torch.nn.Conv2d.forward = watched

    config = tiny(
        f"runs={tmp_path}", f"channels_last={switch}", "schedule.epochs=1", "attention=none", "fold_batch_norm=false"
    )
    ended = run(tmp_path, config, watch)
    assert ended.code == 0, ended.err
