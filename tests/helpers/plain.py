"""train.py's own loop on networks and images of a test's own, without a run directory, and the
plain loop that it has to equal.
"""

import contextlib
import hashlib
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from hydra_config import config

import train
from lcm.config.compose import load
from lcm.data import Digits
from lcm.data.in_memory import Batches, Resident
from lcm.models.build import build_network

CPU = torch.device("cpu")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def invented_batches(count=320, batch=16, seed=0):
    """Batches that can be learned: a pattern for each class, and noise; seed None: a test set."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 10, (count,), generator=generator)
    patterns = (
        torch.randint(0, 256, (10, 4, 4, 3), generator=generator)
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)
    )
    noise = torch.randint(-60, 61, (count, 32, 32, 3), generator=generator)
    images = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    augmentation = {"pad": 4, "mirror": True} if seed is not None else {}
    return Batches(Resident(images, labels, MEAN, STD, seed=seed, **augmentation), batch)


def in_dtype(batches, dtype):
    """The same batches with images of another type."""
    prepare = batches.prepare

    def prepared(raw, device):
        images, labels = prepare(raw, device)
        return images.to(dtype), labels

    batches.prepare = prepared
    return batches


def sgd(network, rate=0.1, **options):
    """The paper's optimizer (section 4.1.2)."""
    rate = torch.tensor(rate, device=next(network.parameters()).device)
    return torch.optim.SGD(
        network.parameters(), rate, 0.9, weight_decay=1e-4, nesterov=True, **options
    )


class Rows:
    """In place of lcm.runs.run.Run: no directory, no checkpoint; `rows` are the epochs' metrics.

    epochs: pairs (epoch, step at which it begins). act: called with the epoch and the steps done.
    """

    threads = 1

    def __init__(self, epochs, act):
        self.rows = []
        self.act = act
        self.whole = epochs

    begin = after_test_step = lambda *_, **__: None

    def epochs(self, training, batches):
        self.training = training
        yield from self.whole

    def after_step(self, epoch, done):
        self.training.sums.check("the training loss", epoch)
        self.act(epoch, done)

    def record(self, epoch, row):
        self.rows.append(row)


@contextlib.contextmanager
def in_train(network, batches, test, seed=0):
    """train.py's `fit` takes this network and these batches, if it asks for those of the seed."""
    data = SimpleNamespace(
        train=lambda size, given: {seed: batches}[given],
        test=lambda size: test,
        num_classes=10,
        image_size=32,
    )
    with (
        mock.patch.object(train, "build_network", lambda *_, **keys: {seed: network}[keys["seed"]]),
        mock.patch.object(train, "build_data", lambda _: data),
        mock.patch.object(train, "count", lambda *_: None),
    ):
        yield


def fit(
    network, batches, test=None, rate=0.1, epochs=1, act=lambda *_: None, schedule=(), **settings
):
    """Train a network by train.py's own `fit`, at one rate; returns the Rows.

    epochs: their number, or pairs (epoch, step at which it begins). schedule: other keys of it.
    """
    if isinstance(epochs, int):
        epochs = [(epoch, 0) for epoch in range(1, epochs + 1)]
    chosen = config() | {"device": "cpu", "allocator": False} | settings
    constant = {"learning_rate": rate, "divide_at": [], "batch_size": batches.batch_size}
    chosen["schedule"] = chosen["schedule"] | constant | dict(schedule)
    run = Rows(epochs, act)
    with in_train(network, batches, test or invented_batches(10, 10, seed=None), chosen["seed"]):
        train.fit(chosen, run)
    return run


def plain_training(network, batches, rate=0.1, epochs=1):
    """Plain eager PyTorch: images in NCHW, torch's own SGD without fusion."""
    network.train()
    dtype, optimizer = next(network.parameters()).dtype, sgd(network, rate)
    for epoch in range(epochs):
        for raw in batches.iterate(epoch + 1):
            images, labels = batches.prepare(raw, CPU)
            loss = F.cross_entropy(network(images.to(dtype).contiguous()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def plain_evaluation(network, batches):
    """{"test_loss", "test_top1", "test_top5"} of the whole set."""
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

    return max(
        (flat(ours, n) - flat(theirs, n)).norm() / flat(theirs, n).norm() for n in layers.values()
    ).item()


def digest(tensors):
    """One hash of many tensors, names and all."""
    parts = [
        name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes()
        for name, tensor in tensors.items()
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def small_network(model, memory="fast", device=CPU):
    """A small ResNet or DenseNet with LCM2, in channels-last memory."""
    overrides = {"layers": 8} if model == "resnet20" else {"layers": 7, "memory": memory}
    return build_network(model, "lcm2", seed=0, **overrides).to(
        device, memory_format=torch.channels_last
    )


def randomise(module):
    """Random values everywhere, also where a module starts with zeros or ones and where it keeps
    running statistics.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [
            *module.parameters(),
            *(b for b in module.buffers() if b.is_floating_point()),
        ]:
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(drawn - 0.5 if tensor.dim() > 1 else drawn + 0.1)
    return module


def digits_top1(network, epochs, seed=0, **settings):
    """Test top-1 (%) after the project's training on the digits, by their own schedule."""
    data = Digits(**{k: v for k, v in load("data", "digits").items() if not k.startswith("_")})
    schedule = load("schedule", "digits") | {"epochs": epochs}
    network.to(memory_format=torch.channels_last)
    batches = data.train(64, seed), data.test(100)
    return fit(network, *batches, epochs=epochs, schedule=schedule, **settings).rows[-1][
        "test_top1"
    ]
