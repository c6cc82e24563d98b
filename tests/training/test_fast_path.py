"""The fast path against plain PyTorch: the same batches, the same steps, the same weights."""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lcm.data.in_memory import Batches, Resident
from lcm.models.build import build_network, load_config
from lcm.training.device import keep_pages, set_deterministic, set_precision
from lcm.training.epochs import Trainer
from lcm.training.folding import fold
from lcm.training.graphs import Captured, HostFeed, ResidentFeed

CPU = torch.device("cpu")
STEPS, BATCH = 20, 16
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def made_up(count=STEPS * BATCH, batch=BATCH, seed=0, **augmentation):
    """Batches of images that can be learned: a pattern for each class, and noise; seed None: a test set."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 10, (count,), generator=generator)
    patterns = torch.randint(0, 256, (10, 4, 4, 3), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.randint(-60, 61, (count, 32, 32, 3), generator=generator)
    images = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    augmentation = {"pad": 4, "mirror": True, **augmentation} if seed is not None else {}
    return Batches(Resident(images, labels, MEAN, STD, seed=seed, **augmentation), batch)


def small(model, attention="lcm2", memory="fast"):
    overrides = {"layers": 8} if model == "resnet20" else {"layers": 7, "memory": memory}
    return build_network(model, attention, seed=0, **overrides)


def make_trainer(network, batches, device=CPU, dtype=torch.float32, rate=0.1, precision="fp32", **options):
    """The project's own, as train.py makes it; `dtype` float64 for what only more digits can show."""
    network = network.to(device, dtype=dtype, memory_format=torch.channels_last)
    return Trainer(
        network, batches, made_up(50, 25, seed=None), load_config("schedule", "cifar") | {"learning_rate": rate},
        device=device, autocast=set_precision(precision, device), for_evaluation=partial(fold, image_size=32),
        compiled=None if dtype == torch.float32 else lambda images: network(images.to(dtype)), warn=lambda line: None,
        **options,
    )  # fmt: skip


def plain_training(network, batches, rate):
    """Plain eager PyTorch: NCHW, concatenation, torch's own optimiser."""
    network.train()
    dtype = next(network.parameters()).dtype
    optimizer = torch.optim.SGD(network.parameters(), torch.tensor(rate), 0.9, weight_decay=1e-4, nesterov=True)
    for raw in batches.iterate(0):
        images, labels = batches.prepare(raw, CPU)
        loss = F.cross_entropy(network(images.to(dtype).contiguous()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def plain_evaluation(network, batches):
    network.eval()
    images, labels = batches.prepare((batches.resident.images, batches.resident.labels), CPU)
    with torch.no_grad():
        logits = network(images.contiguous())
    hits = (logits.topk(5).indices == labels[:, None]).double()
    return {
        "test_loss": F.cross_entropy(logits, labels).item(),
        "test_top1": 100 * hits[:, 0].mean().item(),
        "test_top5": 100 * hits.sum(1).mean().item(),
    }


def distance(network, other):
    """The largest relative difference of a layer's weights and statistics, over all layers."""
    ours, theirs = network.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    layers = {}
    for name in theirs:
        if theirs[name].is_floating_point():
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            assert torch.equal(ours[name], theirs[name])  # batches seen

    def flat(state, names):
        return torch.cat([state[name].double().flatten() for name in names])

    return max((flat(ours, n) - flat(theirs, n)).norm() / flat(theirs, n).norm() for n in layers.values()).item()


def test_batches_are_those_of_a_plain_pipeline():
    """Padded with zeros, cut, mirrored, then normalised, image by image: the same but for the last bit of a product."""
    batches = made_up()
    resident = batches.resident
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    shown = [batches.prepare(raw, CPU) for raw in batches.iterate(3)]
    place = 0
    for images, labels in shown:
        for image, label in zip(images, labels, strict=True):
            index, (down, right), flip = (drawn[place] for drawn in resident.plan(3))
            plain = F.pad(resident.images[index].permute(2, 0, 1), (4, 4, 4, 4))[
                :, down : down + 32, right : right + 32
            ]
            plain = ((plain.flip(2) if flip else plain).double() / 255 - mean) / std
            assert (image.double() - plain).abs().max() < 1e-6
            assert label == resident.labels[index]
            place += 1
        if place >= 4 * BATCH:
            break


# Training amplifies differences. In float64 the fast path stays with the plain one at the protocol's own rate. In float32 no
# two orders of summation stay together there: a ReLU's input of 1e-8 changes its sign, and after 20 steps at 0.1 plain eager
# networks that differ in their memory layout alone are 1e-2 apart. Hence the smaller rate, and the test that follows.
@pytest.mark.parametrize(
    "dtype, rate, tolerance", [(torch.float64, 0.1, 1e-10), (torch.float32, 1e-3, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("model, memory", [("resnet20", "fast"), ("densenet40", "fast"), ("densenet40", "linear")])
def test_twenty_steps(model, memory, dtype, rate, tolerance):
    """Channels-last, allocator, batches from bytes, own SGD, linear memory, folded evaluation: the plain path's weights."""
    keep_pages()
    trainer = make_trainer(small(model, memory=memory), made_up(), dtype=dtype, rate=rate)
    trainer.train_epoch()
    plain = plain_training(small(model).to(dtype), made_up(), rate)
    assert trainer.step.totals[2] == STEPS * BATCH
    assert distance(trainer.network, plain) <= tolerance
    if dtype == torch.float32:
        tested = plain_evaluation(plain, made_up(50, 25, seed=None))
        assert trainer.evaluate() == pytest.approx(tested, rel=1e-3)


def test_at_the_full_rate_float32_wanders_as_any_change_of_order_does():
    trainer = make_trainer(small("resnet20"), made_up())
    trainer.train_epoch()
    plain = plain_training(small("resnet20"), made_up(), 0.1)
    truth = plain_training(small("resnet20").double(), made_up(), 0.1)
    assert distance(trainer.network.double(), truth) <= 10 * distance(plain.double(), truth)


def test_resident_feed_shows_the_batches_of_the_host():
    """The GPU's path, run on the CPU: the same bits, whatever the epoch, the place in it and the size of the last batch."""
    batches = made_up(70, 16)
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
    trainers = [make_trainer(small("resnet20"), made_up()) for _ in range(2)]
    trainers[1].train_feed = ResidentFeed(trainers[1].train_feed.batches, CPU)
    results = [trainer.train_epoch() for trainer in trainers]
    assert results[0] == results[1]
    host, resident = (trainer.network.state_dict() for trainer in trainers)
    assert all(torch.equal(host[name], resident[name]) for name in host)


def digits_top1(seed, autocast):
    from lcm.data import Digits

    digits = Digits()
    network = build_network("resnet20", "lcm2", seed=seed).to(memory_format=torch.channels_last)
    schedule = load_config("schedule", "digits") | {"epochs": 4}
    trainer = Trainer(
        network, digits.train(64, seed), digits.test(100), schedule, device=CPU, autocast=autocast,
        for_evaluation=partial(fold, image_size=32),
    )  # fmt: skip
    return trainer.fit()[-1]["test_top1"]


@pytest.mark.slow
def test_bf16_learns_the_digits_as_float32_does():
    """Within the spread of the seeds. Where the processor has no bf16 it is emulated: the same rounding, slowly."""
    bf16 = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    plain = torch.tensor([digits_top1(seed, contextlib.nullcontext()) for seed in range(4)])
    half = torch.tensor([digits_top1(seed, bf16) for seed in range(4)])
    assert plain.mean() > 95
    assert (plain.mean() - half.mean()).abs() <= plain.std().clamp_min(0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model, memory", [("resnet20", "fast"), ("densenet40", "linear")])
def test_a_captured_step_is_the_eager_one(model, memory, precision):
    """Two epochs whose last batch is smaller: two graphs. The same kernels in the same order: the same bits."""
    cuda = torch.device("cuda:0")
    set_deterministic(True, cuda)
    try:
        networks = []
        for capture in (True, False):
            trainer = make_trainer(
                small(model, memory=memory), made_up(70, 16), cuda, rate=0.01, precision=precision, capture=capture
            )
            for trainer.epoch in (1, 2):
                trainer.index = 0
                trainer.step.totals.zero_()
                trainer.train_epoch()
                assert trainer.step.totals[2] == 70
            assert isinstance(trainer._bind(), Captured) == capture
            networks.append(trainer.network.cpu())
        captured, eager = (network.state_dict() for network in networks)
        for name in eager:
            assert torch.equal(captured[name], eager[name]), name
    finally:
        set_deterministic(False, cuda)


@pytest.mark.gpu
def test_the_gpu_learns_what_the_cpu_learns():
    cuda = torch.device("cuda:0")
    networks = []
    for device in (cuda, CPU):
        trainer = make_trainer(small("resnet20"), made_up(), device, rate=1e-3)
        trainer.train_epoch()
        networks.append(trainer.network.cpu())
    assert distance(*networks) <= 1e-3
