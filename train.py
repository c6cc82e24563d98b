"""Train one network: python train.py model=densenet100 attention=lcm2 data=cifar100 seed=0

Composes the config, checks it, and trains in the run directory that follows from it; the same command continues an unfinished
run and does nothing for a finished one. Exit codes: 0 finished, 1 failed, 2 bad input, 3 owned by another process, 75 stopped
by a signal and saved.
"""

import json
import time

import hydra

from lcm import cli
from lcm.config.identity import config_hash
from lcm.errors import Stopped, listed
from lcm.runs.directory import run_directory
from lcm.runs.grid import problems
from lcm.runs.lock import owner
from lcm.runs.state import begun, read_state, recorded, unfinished
from lcm.runs.summary import best_and_last, print_plan, result_line


def train(config):
    """Train the run of one resolved config (nested plain dicts) to its end. Returns its run.json as a dict.

    Raises UserError (what a user can mend), OwnedElsewhere (another process trains it), Stopped (by a signal; saved) and
    NotFinite (a loss or a weight became infinite or NaN).
    """
    if found := problems(config):
        raise listed("the config has problems, nothing was started:", found)
    directory = run_directory(config)
    if unfinished(directory, config) is not None:
        with owner(directory), cli.STOP.listening() as stop:
            if (
                state := unfinished(directory, config)
            ) is not None:  # another process may have been here just now
                train_owned(config, directory, state, stop)
    state = read_state(directory)
    print(
        f"{result_line(state)}\nrun directory: {directory}\ncurves: tensorboard --logdir {config['runs']}"
    )
    return state


def train_owned(config, directory, state, stop):
    """Train in a directory that this process owns; `state` is its run.json so far, {} for a new run."""
    import torch

    from lcm.complexity import count
    from lcm.data import build_data
    from lcm.models.build import build_network
    from lcm.training import checkpoint
    from lcm.training import device as machine
    from lcm.training.compilation import compiled
    from lcm.training.graphs import bind, feed
    from lcm.training.memory import memory_explained
    from lcm.training.step import TestStep, TrainStep

    with memory_explained(config["device"]):
        saved = checkpoint.newest(directory, config_hash(config), set_aside=True)
        if saved and not state:
            print(f"warning: {directory} has lost its run.json; written anew from the checkpoint")
            state = json.loads(saved["run"])
        threads = state.get("threads", "auto") if config["threads"] == "auto" else config["threads"]
        settings = {
            key: config[key] for key in ("device", "precision", "deterministic", "allocator")
        }
        device, autocast, threads = machine.set_up(threads, **settings)

        data, schedule = build_data(config["data"]), config["schedule"]
        train_feed = feed(data.train(schedule["batch_size"], config["seed"]), device)
        test_feed = feed(data.test(schedule["test_batch_size"]), device)
        network = build_network(
            config["model"], config["attention"], data.num_classes, seed=config["seed"]
        )
        complexity = count(network, data.image_size)
        layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
        network.to(device, memory_format=layout)
        optimizer = torch.optim.SGD(  # section 4.1.2 of the paper
            network.parameters(),
            lr=torch.tensor(
                schedule["learning_rate"], device=device
            ),  # on the device, where a CUDA graph reads it
            momentum=schedule["momentum"],
            nesterov=schedule["nesterov"] and schedule["momentum"] > 0,
            weight_decay=schedule["weight_decay"],
            fused=True,
        )
        state = begun(
            config, directory, state, data, complexity, threads, machine.describe_device(device)
        )
        print_plan(config, data, complexity, state, directory, saved)

        with recorded(directory, state), memory_explained(config["device"]):
            forward, size = network, data.image_size
            if config["compile"]:
                forward = compiled(
                    network, min(schedule["batch_size"], train_feed.images), size, autocast, layout
                )
            step = TrainStep(network, optimizer, autocast, device, forward, layout)
            test_step = TestStep(network, autocast, device, layout)
            step, test_step = (
                bind(step, train_feed, config["capture"]),
                bind(test_step, test_feed, config["capture"]),
            )
            if saved:
                checkpoint.restore(directory, saved, step.step)
            with stop.patient():
                run_epochs(config, directory, state, step, test_step, saved, stop)


def run_epochs(config, directory, state, step, test_step, saved, stop):
    """Train the epochs of a run, all of them or those after the checkpoint `saved`; its result is stored in `state`."""
    from lcm.training import checkpoint
    from lcm.training.epochs import evaluate, learning_rate, train_epoch
    from lcm.training.log import RunLog
    from lcm.training.progress import Progress

    schedule, length = config["schedule"], step.feed.steps
    first = saved or {"epoch": 1, "index": 0, "seconds": 0.0, "metrics": ""}
    log = RunLog(directory, first["metrics"], config["tensorboard"])
    progress = Progress(config["progress"], schedule["epochs"], length, schedule["batch_size"])
    interval, began = checkpoint.SaveInterval(config["checkpoint"]["every"]), time.monotonic()

    def seconds():
        return round(first["seconds"] + time.monotonic() - began, 3)

    def save(epoch, done):
        """Save after `done` steps of an epoch, and stop there if a signal has come."""
        run = {"config_hash": state["config_hash"], "run": json.dumps(state), "metrics": log.text}
        run |= {"epoch": epoch, "index": done, "seconds": seconds()}
        checkpoint.save(directory, run | step.step.snapshot(epoch))
        if stop.requested:
            raise Stopped(stop.requested, f"saved after step {done} of epoch {epoch}")

    def after_step(done):
        progress.step(epoch, done, step.step.totals if step.feed.device.type == "cpu" else None)
        if stop.requested or interval.due((epoch - 1) * length + done):
            save(epoch, done)

    try:
        for epoch in range(first["epoch"], schedule["epochs"] + 1):
            start, rate = (
                first["index"] if epoch == first["epoch"] else 0,
                learning_rate(schedule, epoch),
            )
            step.step.optimizer.param_groups[0]["lr"].fill_(rate)
            started = time.monotonic()
            trained = train_epoch(step, epoch, start, after_step)
            speed = max(0, step.feed.images - start * schedule["batch_size"]) / (
                time.monotonic() - started
            )
            tested = evaluate(
                test_step, epoch, lambda at=epoch: save(at, length) if stop.requested else None
            )
            row = {"epoch": epoch, "step": epoch * length, **trained, **tested, "lr": rate}
            row |= {"images_per_second": round(speed, 1), "seconds": seconds()}
            log.append(row)
            progress.epoch(row)
            save(epoch + 1, 0)
        state["result"] = best_and_last(log.rows)
    finally:
        state["seconds"] = seconds()
        progress.clear()
        log.close()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg):
    return cli.run_task(train, cfg)


if __name__ == "__main__":
    cli.main(main)
