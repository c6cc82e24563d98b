"""This project's side: units of work made with its own training API. The only file that knows that API.

Each function makes a unit of work: called, it returns the number of images that it went through.
"""

import sys
from functools import partial

import torch

from lcm.data.in_memory import Batches, Resident
from lcm.models.build import build_network, load_config
from lcm.training import device as machine
from lcm.training.epochs import Trainer
from lcm.training.folding import fold
from lcm.training.progress import Progress

GRAPH_STEPS = 50  # steps of a unit of `steps`


def training(spec, train_images, test_images=64):
    """The project's Trainer as train.py makes it, on random images of the network's size."""
    machine.keep_pages()
    device = machine.choose_device(spec.device)
    size = load_config("model", spec.network)["image_size"]
    machine.set_deterministic(False, device)
    autocast = machine.set_precision(spec.precision, device)
    network = build_network(spec.network, spec.attention, seed=0, **spec.overrides)
    network = network.to(device, memory_format=torch.channels_last)
    schedule = load_config("schedule", "cifar")
    return Trainer(
        network,
        random_batches(train_images, spec.batch, size, pad=4, mirror=True, seed=0),
        random_batches(test_images, schedule["test_batch_size"], size),
        schedule,
        device=device,
        autocast=autocast,
        compiled=torch.compile(network) if spec.compile else None,
        for_evaluation=partial(fold, image_size=size),
        capture=spec.capture,
        progress=Progress("lines", schedule["epochs"], spec.batch),
        warn=lambda line: print(line, file=sys.stderr),
    )


def random_batches(count, batch, size, **augmentation):
    """Batches of `count` random images with CIFAR's mean and standard deviation."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    return Batches(Resident(images, labels, mean, std, **augmentation), batch)


def step(spec):
    """A training step on a batch that is on the device already."""
    trainer = training(spec, spec.batch)
    trainer.network.train()
    batches = trainer.train_feed.batches
    images, labels = batches.prepare(next(iter(batches.iterate(0))), trainer.device)

    def unit():
        trainer.step(images, labels)
        trainer.step.totals.tolist()
        return len(labels)

    return unit


def steps(spec):
    """Training steps bound to their batches, as graphs where `spec.capture` is set and the device is a GPU."""
    return _passes(training(spec, GRAPH_STEPS * spec.batch))


def epoch(spec):
    """A pass over `spec.steps` batches, data and metrics included."""
    return _passes(training(spec, spec.steps * spec.batch))


def _passes(trainer):
    def unit():
        trainer.index = 0
        trainer.step.totals.zero_()
        trainer.train_epoch()
        return trainer.train_feed.images

    return unit


def assembly(spec):
    """Batches alone, in this process."""
    batches = training(spec, 20 * spec.batch).train_feed.batches

    def unit():
        for raw in batches.iterate(0):
            batches.prepare(raw, "cpu")
        return batches.images

    return unit


def evaluation(spec):
    """A pass over a test set of `spec.steps` batches."""
    trainer = training(spec, spec.batch, spec.steps * 100)

    def unit():
        trainer.evaluate()
        return trainer.test_feed.images

    return unit
