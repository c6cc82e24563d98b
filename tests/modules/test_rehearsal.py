"""A step of training, an evaluation and a checkpoint are tried before anything starts."""

import random

import pytest
import torch
import torch.nn.functional as F
from strangers import Calls, Mute
from torch import nn

from lcm.config.compose import load
from lcm.models.build import site_problems
from lcm.training.state import rehearse

RESNET = load("model", "resnet20") | {"layers": 8}
NONE = {"name": "none"}


def own(target, **keys):
    return {"name": "mine", "_target_": f"{__name__}.{target}", "sites": "every"} | keys


def mine(target):
    return {"name": "mine", "family": "mine", "image_size": 32, "_target_": f"{__name__}.{target}"}


def spoilt(channels):
    """Changes in place what the backward pass needs."""
    return Calls(lambda m, x: x.exp().clone() + (y := x.exp()) + y.mul_(2))


def viewed(channels):
    """Asks for a layout."""
    return Calls(lambda m, x: x.view(len(x), -1).view(x.shape))


def complex_scale(channels):
    """Learns a complex number."""
    return Calls(
        lambda m, x: x * m.scale.real, scale=nn.Parameter(torch.ones((), dtype=torch.cfloat))
    )


def sparse_scale(channels):
    """Learns numbers whose gradients are sparse."""
    table = nn.Embedding(2, 1, sparse=True)
    return Calls(lambda m, x: x * m.table(torch.zeros((), dtype=torch.int64)), table=table)


def unused(channels):
    """Forgets its weight."""
    return Calls(lambda m, x: x, scale=nn.Parameter(torch.ones(())))


def listed(channels, make):
    """Has its weight in a list; of some the backward pass needs no more than a view, or nothing."""
    weights = [nn.Parameter(torch.ones(channels, channels))]
    return Calls(
        lambda m, x: {
            "linear": lambda w: F.linear(x.movedim(1, 3), w).movedim(3, 1),
            "sum": lambda w: x + w[:1, :1],
            "product": lambda w: torch.einsum("nchw,cd->ndhw", x, w),
        }[make](weights[0])
    )


def dropping(channels):
    """Leaves itself out in half of the steps of training."""
    return Calls(
        lambda m, x: x if m.training and random.random() < 0.5 else x * m.scale,
        scale=nn.Parameter(torch.ones(())),
    )


def squeezing(num_classes):
    """Has no place for a batch of one image."""
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), Calls(lambda m, x: x.mean((2, 3)).squeeze()))


def mute(num_classes):
    return Mute(lambda m, x: m.conv(x).flatten(1), conv=nn.Conv2d(3, num_classes, 32))


def frozen(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, num_classes, 32), nn.Flatten(), nn.Linear(num_classes, num_classes)
    ).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "attention", "problem"),
    [
        (RESNET, own("Scale") | {"_target_": "strangers.Scale"}, ""),
        (RESNET, own("spoilt"), "RuntimeError: one of the variables needed for"),
        (RESNET, own("viewed"), "RuntimeError: view size is not compatible"),
        (RESNET, own("complex_scale"), "not implemented for 'ComplexFloat'"),
        (RESNET, own("sparse_scale"), "does not support sparse gradients"),
        (RESNET, own("unused"), "stage1.0.site.scale has no part in the loss: is its result used?"),
        *((RESNET, own("listed", make=make), "it has a weight in a list or a plain tensor, which")
            for make in ("linear", "sum", "product")),
        (RESNET, own("dropping"), ""),
        (mine("mute"), NONE, ""),
        (mine("squeezing"), NONE, "it makes (10,) float32 of images (1, 3, 32, 32)"),
        (mine("frozen"), NONE, "model=mine: it has no parameter that learns"),
    ],
)  # fmt: skip
def test_a_step_of_training_is_tried_before_anything_starts(model, attention, problem):
    facts = load("schedule", "digits"), True, False
    found = site_problems(model, attention, 10, trial=lambda *given: rehearse(*given, *facts))
    assert len(found) == bool(problem) and problem in "".join(found) and "\n" not in "".join(found)
