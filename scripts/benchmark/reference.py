"""The reference: a plain PyTorch loop as torchvision's reference training has it.

DataLoader with PIL transforms and loader processes, eager float32 in NCHW, torch.optim.SGD, metrics read in every step. Each
function makes a unit of work: called, it returns the number of images that it went through.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from lcm.models.build import build_network


class Images(datasets.CIFAR10):
    """torchvision's CIFAR10 with random images, cropped after padding, mirrored and normalised as its tutorials do."""

    def __init__(self, count):
        generator = np.random.default_rng(0)
        self.data = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        self.targets = generator.integers(0, 10, count).tolist()
        normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        crop, mirror = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, mirror, transforms.ToTensor(), normalise])
        self.target_transform = None


def training(spec):
    """(network, its training step)."""
    network = build_network(spec.network, seed=0).to(spec.device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def step(images, labels):
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, loss

    return network, step


def batch_at_hand(spec):
    return torch.randn(spec.batch, 3, 32, 32, device=spec.device), torch.arange(
        spec.batch, device=spec.device
    ) % 10


def step(spec):
    """A training step on a batch that is on the device already."""
    _, train = training(spec)
    images, labels = batch_at_hand(spec)

    def unit():
        train(images, labels)[1].item()
        return len(labels)

    return unit


def epoch(spec):
    """A pass over `spec.steps` batches, data and metrics included."""
    _, train = training(spec)
    workers = {
        "num_workers": spec.loaders,
        "persistent_workers": spec.loaders > 0,
        "pin_memory": spec.device == "cuda",
    }
    loader = DataLoader(Images(spec.steps * spec.batch), spec.batch, shuffle=True, **workers)

    def unit():
        loss_sum = top1_sum = top5_sum = seen = 0
        for images, labels in loader:
            images, labels = (
                images.to(spec.device, non_blocking=True),
                labels.to(spec.device, non_blocking=True),
            )
            logits, loss = train(images, labels)
            hits = logits.topk(5).indices == labels[:, None]
            loss_sum += loss.item() * len(labels)
            top1_sum += hits[:, 0].sum().item()
            top5_sum += hits.sum().item()
            seen += len(labels)
        return seen

    return unit


def assembly(spec):
    """Batches alone, in this process."""
    loader = DataLoader(Images(20 * spec.batch), spec.batch, shuffle=True)
    return lambda: sum(len(labels) for _, labels in loader)


def evaluation(spec):
    """A forward pass without gradients over a batch that is on the device already."""
    network, _ = training(spec)
    network.eval()
    images, labels = batch_at_hand(spec)

    @torch.no_grad()
    def unit():
        (network(images).argmax(1) == labels).sum().item()
        return len(labels)

    return unit
