"""Train one network: python train.py model=densenet100 attention=lcm2 data=cifar100 seed=0

Composes the config, checks it, and trains in the run directory that follows from it; the same command continues an unfinished
run and does nothing for a finished one. Exit codes: 0 finished, 1 failed, 2 bad input, 3 owned by another process, 75 stopped
by a signal and saved.
"""

import json
import sys
from functools import partial

import hydra

from lcm import cli as launch
from lcm.config.check import check, config_hash
from lcm.errors import UserError
from lcm.runs.state import (
    circumstances,
    continued,
    new_state,
    owner,
    read_state,
    recorded,
    refuse_another_config,
    run_directory,
)


def train(config):
    """Train the run of one resolved config (nested plain dicts) to its end. Returns its run.json as a dict.

    Raises UserError for what a user can mend, OwnedElsewhere where another process trains it, Stopped after a signal and
    NotFinite where the loss is no number; run.json tells the last two, and why.
    """
    faults = check(config)
    if faults:
        raise UserError("\n".join(["the config has faults, nothing was started:", *(f"  {fault}" for fault in faults)]))
    directory = run_directory(config)
    state = read_state(directory)
    refuse_another_config(directory, state, config)
    if state.get("state") == "finished":
        print(f"already finished: {directory}\n{result_line(state)}")
        return state
    with owner(directory):
        state = read_state(directory)  # again: another process may have been here just now
        refuse_another_config(directory, state, config)
        if state.get("state") == "finished":
            print(f"just finished by another process: {directory}\n{result_line(state)}")
            return state
        return train_owned(config, directory, state)


def train_owned(config, directory, state):
    """The run itself, in a directory that this process owns; `state` is the run.json of its earlier part, if any."""
    import torch
    from hydra.utils import instantiate

    from lcm.complexity import count
    from lcm.models.build import build_network
    from lcm.training import checkpoint
    from lcm.training import device as machine
    from lcm.training.epochs import Trainer, memory_explained
    from lcm.training.folding import fold
    from lcm.training.log import RunLog
    from lcm.training.progress import Progress

    with launch.STOP.listening() as stop, memory_explained(config["device"]):
        # The directory: new, or a run that stopped
        saved = checkpoint.newest(directory, config_hash(config), set_aside=True)
        if saved and not state:
            print(f"warning: {directory} has lost its run.json; written anew from the checkpoint")
            state = json.loads(saved["run"])

        # The machine
        if config["allocator"]:
            machine.keep_pages()
        threads = state.get("threads", "auto") if config["threads"] == "auto" else config["threads"]
        threads = machine.set_threads(threads, launch.LOAD)
        device = machine.choose_device(config["device"])
        machine.set_deterministic(config["deterministic"], device)
        autocast = machine.set_precision(config["precision"], device)

        # Data and network
        schedule = config["schedule"]
        with launch.unwrapped():
            data = instantiate(config["data"])
        if state and state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{directory} was trained on other images of the same name (another copy, order or preparation of "
                f"{config['data']['name']}): give data.root the copy it began with, or start anew with run_directory=..."
            )
        network = build_network(config["model"], config["attention"], data.num_classes, seed=config["seed"])
        complexity = count(network, data.image_size)
        layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
        network = network.to(device, memory_format=layout)
        here = circumstances(machine.describe_device(device))
        if state:
            state = continued(state, here)
        else:
            state = new_state(
                config, directory, params=complexity.params, gfloat=complexity.gfloat, macs=complexity.macs, threads=threads,
                data_fingerprint=data.fingerprint, **here,
            )  # fmt: skip
            if notes := getattr(data, "notes", []):  # images that are not what the protocol asks for
                state["deviations"]["data.notes"] = notes
        print_plan(config, data, complexity, device, directory, saved)

        # Training
        with recorded(directory, state):
            log = RunLog(directory, saved["metrics"] if saved else "", config["tensorboard"])
            trainer = Trainer(
                network,
                data.train(schedule["batch_size"], config["seed"]),
                data.test(schedule["test_batch_size"]),
                schedule,
                device=device,
                autocast=autocast,
                compiled=torch.compile(network) if config["compile"] else None,
                for_evaluation=partial(fold, image_size=data.image_size) if config["fold_batch_norm"] else None,
                capture=config["capture"],
                directory=directory,
                run=state,
                log=log,
                every=config["checkpoint"]["every"],
                stop=stop,
                progress=Progress(
                    config["progress"], schedule["epochs"], schedule["batch_size"], first=saved["epoch"] if saved else 1
                ),
            )
            if saved:
                trainer.restore(saved)
            try:
                with stop.patient():
                    rows = trainer.fit()
            finally:
                state["seconds"] = round(trainer.seconds, 3)
                trainer.progress.clear()
                log.close()
            best = max(rows, key=lambda row: (row["test_top1"], -row["epoch"]))
            last = ("epoch", "train_loss", "train_top1", "test_loss", "test_top1", "test_top5")
            state["result"] = {key: rows[-1][key] for key in last} | {
                "best_test_top1": best["test_top1"], "best_epoch": best["epoch"]
            }  # fmt: skip
    state = read_state(directory)
    print(result_line(state))
    print(f"run directory: {directory}\ncurves: tensorboard --logdir {config['runs']}")
    return state


def print_plan(config, data, complexity, device, directory, saved):
    """What will run, before it starts."""
    from lcm.training.device import describe_device

    schedule, attention = config["schedule"], config["attention"]
    print(f"network     {config['model']['name']} + {attention['name']}, {data.num_classes} classes: "
          f"{complexity.params / 1e6:.3f} M parameters, {complexity.gfloat:.3f} GFloat (the paper's count), "
          f"{complexity.macs / 1e9:.3f} G multiply-accumulates")  # fmt: skip
    train, test = data.train(schedule["batch_size"], 0), data.test(schedule["test_batch_size"])
    print(f"data        {config['data']['name']}: {train.images} training and {test.images} test images")
    for note in getattr(data, "notes", []):
        print(f"            {note}")
    print(f"schedule    {schedule['name']}: {in_epochs(schedule['epochs'])}, batch {schedule['batch_size']}, learning rate "
          f"{schedule['learning_rate']:g} divided by {schedule['divide_by']:g} at {schedule['divide_at']}")  # fmt: skip
    print(f"device      {describe_device(device)}, {config['precision']}{', compiled' if config['compile'] else ''}")
    print(f"run         {directory}, seed {config['seed']}")
    if saved:
        print(f"continuing  from epoch {saved['epoch']}, step {saved['index']}")
    sys.stdout.flush()


def in_epochs(number):
    return "1 epoch" if number == 1 else f"{number} epochs"


def result_line(state):
    """The result of a finished run, with the paper's number beside it where the paper has this row."""
    from lcm.reporting.paper import paper_accuracy

    result, epochs = state["result"], state["epochs"]
    line = (
        f"test top-1 {result['test_top1']:.2f} %, top-5 {result['test_top5']:.2f} % after the last of {in_epochs(epochs)} "
        f"(best epoch {result['best_epoch']}: {result['best_test_top1']:.2f} %)"
    )
    paper = paper_accuracy(state["data"], state["model"], state["attention"])
    if paper:
        numbers = ", ".join(f"{metric.replace('top', 'top-')} {value:.2f} %" for metric, value in paper.items())
        protocol = {"cifar": 300, "mini_imagenet": 100}.get(state["schedule"])
        same = protocol == epochs and not state["deviations"]
        line += f"\nthe (retracted) paper prints {numbers} for this row" + (
            "" if same else ", after its own, longer schedule"
        )
    return line


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg):
    return launch.run_job(train, cfg)


if __name__ == "__main__":
    launch.main(main)
