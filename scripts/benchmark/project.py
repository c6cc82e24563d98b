"""This project's side: units of work made with its own training API. The only file that knows that API.

Each function makes a unit of work: called, it returns the number of images that it went through.
"""

import sys
from functools import partial

import torch
from lcm.training.epochs import evaluate, train_epoch
from lcm.training.step import TestStep, TrainStep

from lcm.config.compose import load as load_config
from lcm.data.in_memory import Batches, Resident
from lcm.models.build import build_network
from lcm.training.compilation import compiled
from lcm.training.device import set_up
from lcm.training.graphs import bind, feed

say = partial(print, file=sys.stderr)


def network_of(spec):
    """(network, height and width of its images, device, autocast context, memory layout), as train.py makes them."""
    device, autocast, _ = set_up(
        spec.threads, spec.device, spec.precision, deterministic=False, allocator=True
    )
    network = build_network(spec.network, spec.attention, seed=0, **spec.overrides)
    size = load_config("model", spec.network)["image_size"]
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    return network.to(device, memory_format=layout), size, device, autocast, layout


def random_batches(count, batch, size=32, **augmentation):
    """Batches of `count` random images with CIFAR's mean and standard deviation."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    return Batches(Resident(images, labels, mean, std, **augmentation), batch)


def training(spec):
    """The training step, bound to `spec.steps` batches."""
    network, size, device, autocast, layout = network_of(spec)
    schedule = load_config("schedule", "cifar")
    rate = torch.tensor(schedule["learning_rate"], device=device)
    settings = {key: schedule[key] for key in ("momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, fused=True, **settings)
    forward = (
        compiled(network, spec.batch, size, autocast, layout, say) if spec.compile else network
    )
    images = feed(
        random_batches(spec.steps * spec.batch, spec.batch, size, pad=4, mirror=True, seed=0),
        device,
    )
    return bind(
        TrainStep(network, optimizer, autocast, device, forward, layout), images, spec.capture, say
    )


def epoch(spec):
    """A pass over `spec.steps` batches, data and metrics included; whole steps as graphs where the device is a GPU."""
    bound = training(spec)

    def unit():
        train_epoch(bound, 1)
        return bound.feed.images

    return unit


step = epoch  # of one batch, or of few


def assembly(spec):
    """Batches alone, in this process."""
    batches = random_batches(20 * spec.batch, spec.batch, pad=4, mirror=True, seed=0)

    def unit():
        for raw in batches.iterate(0):
            batches.prepare(raw, "cpu")
        return batches.images

    return unit


def evaluation(spec):
    """A pass over a test set of `spec.steps` batches."""
    network, size, device, autocast, layout = network_of(spec)
    batch = load_config("schedule", "cifar")["test_batch_size"]
    images = feed(random_batches(spec.steps * spec.batch, batch, size), device)
    bound = bind(TestStep(network, autocast, device, size, layout), images, spec.capture, say)

    def unit():
        evaluate(bound, 1)
        return bound.feed.images

    return unit
