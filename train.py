"""Train one network: python train.py model=densenet100 attention=lcm2 data=cifar100 seed=0

Composes the config, checks it, and trains in the run directory that follows from it; the same
command continues a run. Exit codes: 0 finished, 1 failed, 2 bad input, 3 owned elsewhere, 75 saved.
"""

import contextlib

import hydra
import torch
import torch.nn.functional as F

from lcm import cli
from lcm.complexity import count
from lcm.data import build_data
from lcm.errors import listed
from lcm.models.build import build_network
from lcm.runs.grid import problems
from lcm.runs.run import Run
from lcm.training.compilation import compiled
from lcm.training.device import describe_device, set_up
from lcm.training.graphs import batches_on, with_graph
from lcm.training.schedule import learning_rate, make_optimizer
from lcm.training.state import Sums, TrainingState


def train(config):
    """Train the run of one resolved config (nested plain dicts) to its end. Returns its run.json.

    Raises UserError (a user can solve it), OwnedElsewhere (another process trains the run), Stopped
    (by a signal; saved) and NotFinite (a loss or a weight became infinite or NaN).
    """
    if found := problems(config):
        raise listed("the config has problems, nothing was started:", found)
    run = Run(config)
    with contextlib.nullcontext() if run.finished else run.owned():
        if run.finished:  # by another process, just now, where the directory is owned
            print(f"already finished: {run.directory}")
        else:
            fit(config, run)
    run.report()
    return run.state


def fit(config, run):
    """The whole of a run: machine, data, network, optimiser, one step, the epochs."""
    schedule = config["schedule"]
    seed = config["seed"]

    # ------------------------------------------------------------------------------------ machine
    settings = {key: config[key] for key in ("device", "precision", "deterministic", "allocator")}
    device, autocast, threads = set_up(run.threads, **settings)
    layout = torch.channels_last if config["channels_last"] else torch.contiguous_format

    # --------------------------------------------------------------------------------------- data
    # What an epoch shows is a function of (seed, epoch). A GPU keeps images and plan resident.
    data = build_data(config["data"])
    train_batches = batches_on(device, data.train(schedule["batch_size"], seed))
    test_batches = batches_on(device, data.test(schedule["test_batch_size"]))

    # ------------------------------------------------------------------------ network, optimiser
    # A layer's weights depend on (seed, its name) alone: networks of one seed share a backbone's.
    network = build_network(config["model"], config["attention"], data.num_classes, seed=seed)
    run.begin(data, count(network, data.image_size), threads, describe_device(device))
    network.to(device, memory_format=layout)
    optimizer = make_optimizer(schedule, network)  # section 4.1.2 of the paper: SGD
    forward = network
    if config["compile"]:
        forward = compiled(network, train_batches.size(0), data.image_size, autocast, layout)

    def logits_of(images, through=forward):  # (B, 3, H, W) -> (B, classes) float32
        with autocast:
            logits = through(images.contiguous(memory_format=layout))
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

    # ------------------------------------------------------------------------------------- epochs
    # Sums stay on the device and are read once an epoch: the CPU never waits for a GPU inside one.
    trained = Sums(device)
    tested = Sums(device, top5=True)
    state = TrainingState(network, optimizer, trained)  # what a step changes, a checkpoint holds
    train_step = training_step(logits_of, optimizer, trained, schedule)
    test_step = evaluation_step(lambda images: logits_of(images, network), tested)
    # On a GPU each becomes a CUDA graph; all that it changes is named: a capture changes nothing.
    capture = config["capture"]
    train_step = with_graph(
        train_step, train_batches, state.tensors, capture, network.train, (seed, "train")
    )
    test_step = with_graph(
        test_step, test_batches, tested.tensors, capture, network.eval, (seed, "test")
    )
    for epoch, start in run.epochs(state, train_batches):
        optimizer.param_groups[0]["lr"].fill_(rate := learning_rate(schedule, epoch))
        if start == 0:  # otherwise the sums of its first part are in the checkpoint
            trained.clear()
        network.train()
        for done in train_step.epoch(epoch, start):
            run.after_step(epoch, done)
        trained.check("the training loss", epoch)
        tested.clear()
        network.eval()
        for done in test_step.epoch(epoch):
            run.after_test_step(epoch, left=len(test_batches) - done)
        tested.check("the test loss", epoch)
        run.record(epoch, trained.means("train") | tested.means("test") | {"lr": rate})


def training_step(logits_of, optimizer, trained, schedule):
    """One update with the mean cross-entropy of a batch: step(images, labels)."""
    optimizer.found_inf = trained.bad  # after a loss that is not finite no step changes a weight

    def step(images, labels):
        optimizer.zero_grad()
        logits = logits_of(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=schedule["label_smoothing"])
        trained.add(loss.detach().double() * len(labels), logits, labels)
        loss.backward()
        optimizer.step()

    return step


def evaluation_step(logits_of, tested):
    """Add the loss and the hits of a batch to `tested`: step(images, labels)."""

    @torch.inference_mode()
    def step(images, labels):
        logits = logits_of(images)
        tested.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)

    return step


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg):
    return cli.run_task(train, cfg)


if __name__ == "__main__":
    cli.main(main)
