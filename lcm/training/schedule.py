"""A schedule in words, its learning rate in an epoch, and its optimiser."""

import math

import torch

from lcm.errors import plural


def described(schedule):
    """A schedule in words, for the plan that a run prints; what it does not have is left out."""
    steps = "for all epochs"
    if shares := [f"{100 * share:g} %" for share in schedule["divide_at"]]:
        steps = f"divided by {schedule['divide_by']:g} after {' and '.join(shares)} of the epochs"
    decay = steps if schedule["decay"] == "steps" else "falling as a cosine"
    words = f"learning rate {schedule['learning_rate']:g} {decay}"
    if schedule["warm_up"]:
        words += f" after a warm-up of {plural(schedule['warm_up'], 'epoch')}"
    if schedule["label_smoothing"]:
        words += f", label smoothing {schedule['label_smoothing']:g}"
    return words + (", AdamW" if schedule["optimizer"] == "adamw" else "")


def learning_rate(schedule, epoch):
    """The rate of an epoch, counted from 1: a function of the schedule and the epoch alone.

    After a warm-up of `warm_up` epochs w, in which it rises linearly (epoch e has e / (w + 1) of
    `learning_rate`):
        decay=steps: divided by `divide_by` after each share of all epochs in `divide_at`.
        decay=cosine: learning_rate (1 + cos(pi (e - 1 - w) / (epochs - w))) / 2; I. Loshchilov,
            F. Hutter, "SGDR", ICLR 2017, Eq. (5), without restarts, by epoch.
    """
    rate, warm_up = schedule["learning_rate"], schedule["warm_up"]
    if epoch <= warm_up:
        return rate * epoch / (warm_up + 1)
    if schedule["decay"] == "cosine":
        share = (epoch - 1 - warm_up) / (schedule["epochs"] - warm_up)
        return rate * (1 + math.cos(math.pi * share)) / 2
    # Rounded: 0.55 * 100 is 55.00000000000001, and the division would come an epoch late.
    passed = sum(epoch - 1 >= round(s * schedule["epochs"], 6) for s in schedule["divide_at"])
    return rate / schedule["divide_by"] ** passed


def make_optimizer(schedule, network):
    """The optimiser of a schedule on the network's parameters, fused.

    sgd: section 4.1.2 of the paper. adamw: I. Loshchilov, F. Hutter, ICLR 2019. The rate is a
    tensor on the device, where a CUDA graph reads it; it is set before each epoch.
    """
    device = next(network.parameters()).device
    shared = {"lr": 0.0, "weight_decay": schedule["weight_decay"], "fused": True}
    if schedule["optimizer"] == "adamw":
        made = torch.optim.AdamW(
            network.parameters(),
            betas=tuple(schedule["betas"]),
            eps=schedule["eps"],
            capturable=device.type == "cuda",  # a CUDA graph demands it
            **shared,
        )
    else:
        # torch refuses Nesterov's momentum where there is no momentum.
        made = torch.optim.SGD(
            network.parameters(),
            momentum=schedule["momentum"],
            nesterov=schedule["nesterov"] and schedule["momentum"] > 0,
            **shared,
        )
    made.param_groups[0]["lr"] = torch.tensor(0.0, device=device)
    return made
