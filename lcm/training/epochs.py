"""One epoch of training and one of evaluation.

The random numbers of an epoch are a function of (seed, epoch), its learning rate is one of the epoch alone: a run that is stopped
after any step and continued ends with the same bits as one that is not stopped.
"""

import math

from lcm.training.step import not_finite


def learning_rate(schedule, epoch):
    """The rate of an epoch (from 1): divided by `divide_by` after each share of the epochs in `divide_at`."""
    passed = sum(
        epoch - 1 >= round(share * schedule["epochs"], 6) for share in schedule["divide_at"]
    )
    return schedule["learning_rate"] / schedule["divide_by"] ** passed


def train_epoch(step, epoch, start=0, after_step=lambda done: None):
    """Train through epoch `epoch` (from 1), from its step `start` on.

    Args:
        step: a TrainStep bound to its batches (`lcm.training.graphs.bind`). Its totals are reset where `start` is 0.
        after_step: called with the number of the epoch's finished steps; what it raises ends the epoch.

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
        if (
            train.bad.device.type == "cpu" and train.bad
        ):  # from a GPU it is read at the end of the epoch
            break
        after_step(index + 1)
    if train.bad:
        raise not_finite("the training loss", epoch)
    loss, hits, images = train.totals.tolist()
    return {"train_loss": loss / images, "train_top1": 100 * hits / images}


def evaluate(step, epoch, after_step=lambda: None):
    """The whole test set once, after epoch `epoch`.

    Args:
        step: a TestStep bound to its batches.
        after_step: called after each step; what it raises ends the evaluation.

    Returns:
        {"test_loss": mean cross-entropy, "test_top1": percent, "test_top5": percent}.

    Raises:
        NotFinite: the loss is infinite or NaN.
    """
    test, feed = step.step, step.feed
    test.totals.zero_()
    feed.start(0)
    for index in range(feed.steps):
        step(index)
        after_step()
    loss, top1, top5, images = test.totals.tolist()
    if not math.isfinite(loss):
        raise not_finite("the test loss", epoch)
    return {
        "test_loss": loss / images,
        "test_top1": 100 * top1 / images,
        "test_top5": 100 * top5 / images,
    }
