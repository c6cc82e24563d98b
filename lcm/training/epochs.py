"""One epoch of training and one of evaluation.

Everything that an epoch draws is a function of (seed, epoch), and the learning rate one of the epoch alone: a run that was
stopped after any step and continued ends with the same bits as one that was not.
"""

import math

from lcm.training.graphs import Eager
from lcm.training.step import not_finite


def learning_rate(schedule, epoch):
    """The rate of an epoch (from 1): divided by `divide_by` when each share in `divide_at` of the epochs is over."""
    passed = sum(epoch - 1 >= round(share * schedule["epochs"], 6) for share in schedule["divide_at"])
    return schedule["learning_rate"] / schedule["divide_by"] ** passed


def train_epoch(step, epoch, start=0, after_step=lambda done: None):
    """Train through epoch `epoch` (from 1), from its step `start` on.

    Args:
        step: a TrainStep bound to its batches (`lcm.training.graphs.bind`). From a `start` other than 0 its totals go on.
        after_step: called with the number of the epoch's steps that are done; what it raises ends the epoch.

    Returns:
        {"train_loss": mean cross-entropy, "train_top1": percent} over the whole epoch, while the weights changed.

    Raises:
        NotFinite: the loss became infinite or NaN; the weights are those before that step.
    """
    train, feed = step.step, step.feed
    if start == 0:
        train.totals.zero_()
    feed.start(epoch - 1, start)
    for index in range(start, feed.steps):
        step(index)
        if train.bad.device.type == "cpu" and train.bad:  # a GPU is asked at the end of the epoch
            break
        after_step(index + 1)
    if train.bad:
        raise not_finite("the training loss", epoch)
    loss, hits, images = train.totals.tolist()
    return {"train_loss": loss / images, "train_top1": 100 * hits / images}


def evaluate(step, epoch, after_step=lambda: None):
    """The whole test set once, after epoch `epoch`.

    Args:
        step: a TestStep bound to its batches. Batch norms are folded anew, unless the step is captured with the network's own.
        after_step: called after each step; what it raises ends the evaluation.

    Returns:
        {"test_loss": mean cross-entropy, "test_top1": percent, "test_top5": percent}.

    Raises:
        NotFinite: the loss is infinite or NaN.
    """
    test, feed = step.step, step.feed
    test.totals.zero_()
    if isinstance(step, Eager):
        test.fold()
    feed.start(0)
    for index in range(feed.steps):
        step(index)
        after_step()
    loss, top1, top5, images = test.totals.tolist()
    if not math.isfinite(loss):
        raise not_finite("the test loss", epoch)
    return {"test_loss": loss / images, "test_top1": 100 * top1 / images, "test_top5": 100 * top5 / images}
