"""This project's training beside a plain PyTorch loop: in turns, in one run, on this machine.

    python scripts/benchmark.py                            # a quarter of an hour on two cores
    python scripts/benchmark.py --out benchmark.csv --attentions se,lcm1,lcm2
    python scripts/benchmark.py --variants bf16 device=cuda channels_last=false

What is compared with what: docs/benchmark.md.
"""

import datetime
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import checkout  # before lcm
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision import transforms

import train
from lcm.config.check import typed
from lcm.config.compose import composed, resolve
from lcm.data import build_data
from lcm.errors import exit_on_user_error, listed
from lcm.files import write
from lcm.models.build import build_network
from lcm.runs.grid import problems
from lcm.training.device import describe_device, set_up

ROUNDS = 5  # in each of which every side has a turn
DATA = ["data=digits", "data.mirror=true", "schedule=cifar"]  # images and batches as CIFAR's
VARIANTS = {  # words of train.py
    "plain": [],
    "fp32": [],
    "fp32 compiled": ["compile=true"],
    "bf16": ["precision=bf16"],
    "bf16 compiled": ["precision=bf16", "compile=true"],
}
COLUMNS = [
    *("date", "torch", "machine", "what", "network", "attention", "variant"),
    *("images_per_second", "ratio", "low", "high", "rounds"),
]


class Timed:
    """In place of lcm.runs.run.Run: some epochs, nothing on the disk. `seconds`: of each epoch.

    The evaluation after an epoch is not timed. A step has its batch in it.
    """

    def __init__(self, threads, epochs):
        self.threads, self.last = threads, epochs
        self.seconds = []

    def begin(self, data, complexity, threads, device):
        self.machine = device

    def epochs(self, state, batches):
        self.batches = batches
        for epoch in range(1, self.last + 1):
            self.began = time.perf_counter()
            yield epoch, 0

    def after_step(self, epoch, done):
        if done == len(self.batches):
            # Kernels of a GPU run behind the CPU: the clock waits for the last one.
            if self.batches.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.began)

    record = after_test_step = lambda *_, **__: None


def project(config, epochs):
    """This project's side, train.py's own `fit`: (machine, images/s of a step, of an epoch).

    After an epoch that is not counted: kernels are chosen, buffers allocated.
    """
    run = Timed(config["threads"], epochs + 1)
    train.fit(config, run)
    # One speed for both: this side's steps make their own batches, and an epoch is its steps.
    speed = run.batches.images * epochs / sum(run.seconds[1:])
    return run.machine, speed, speed


def plain(config, epochs):
    """The other side, as torchvision's references and most public code have it; returns the same.

    Eager float32 in NCHW, torch's SGD, a DataLoader in the same process, metrics read in every
    step. Its step begins when the batch is on the device.
    """
    schedule = config["schedule"]
    device, _, _ = set_up(
        config["threads"], config["device"], "fp32", deterministic=False, allocator=False
    )
    data = build_data(config["data"]).train(schedule["batch_size"], seed=0).resident
    transform = transforms.Compose(
        [
            transforms.RandomCrop(data.images.shape[1:3], padding=data.pad),
            transforms.RandomHorizontalFlip(0.5 * data.mirror),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(data.mean, data.std),
        ]
    )

    def collate(samples):
        return default_collate([(transform(image), label) for image, label in samples])

    # torchvision's transforms take uint8 (3, H, W). A TensorDataset has no transform: `collate`
    # applies it to one image after the other.
    dataset = TensorDataset(data.images.permute(0, 3, 1, 2).contiguous(), data.labels)
    loader = DataLoader(dataset, schedule["batch_size"], shuffle=True, collate_fn=collate)
    network = build_network(config["model"], config["attention"], seed=0).to(device)
    settings = {key: schedule[key] for key in ("momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), schedule["learning_rate"], **settings)
    for epoch in range(epochs + 1):
        # Both clocks start over with the second epoch: kernels are chosen and memory allocated.
        if epoch < 2:  # the first one is not counted
            began = time.perf_counter()
            in_steps = 0
        loss_sum = hits = 0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            ready = time.perf_counter()
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # item() waits for the device: on a GPU, too, a step's time includes its kernels.
            loss_sum += loss.item() * len(labels)
            hits += (logits.argmax(1) == labels).sum().item()
            in_steps += time.perf_counter() - ready
    seconds = np.array([in_steps, time.perf_counter() - began])
    return describe_device(device), *(len(data) * epochs / seconds)


def config_of(network, attention, variant, words):
    """train.py's config of a side. Raises UserError."""
    # Any other variant is taken for a precision: `problems` names it where it is none.
    side = VARIANTS.get(variant, [f"precision={variant}"])
    chosen = [*DATA, f"model={network}", f"attention={attention}", *side, *words]
    config = typed(resolve(composed(chosen)))
    own = [word for word in words if word.startswith(("model=", "attention="))]
    if found := [f"{word}: --networks and --attentions choose" for word in own] + problems(config):
        raise listed("nothing was measured:", found)
    return config


def turn(variant, config, epochs):
    """What a side returns, from a process of its own.

    Raises what the process raises: UserError where the machine cannot do what words ask for.
    """
    # Threads, precision and the C allocator are set for a whole process, so turns in one
    # process would not begin alike. Spawned: CUDA does not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        side = plain if variant == "plain" else project
        return process.submit(side, config, epochs).result()


def rows(machine, what, sides, speeds):
    """A DataFrame with a row for each side. Ratios to the first side are taken within a round.

    sides: [(network, attention, variant in words)]. speeds: images/s, (rounds, sides).
    Of `step` and `epoch`: images/s over those of the first side. Of `attention`: time of a step.
    """
    # Within a round: other programs slow down all of its sides. Time is the inverse of speed.
    ratios = (speeds / speeds[:, :1]) ** (-1 if what == "attention" else 1)
    numbers = np.median(speeds, 0), np.median(ratios, 0), ratios.min(0), ratios.max(0)
    facts = [f"{datetime.date.today()}", torch.__version__, machine, what]
    found = [
        [*facts, *side, *(f"{number:.6g}" for number in columns), len(speeds)]
        for side, *columns in zip(sides, *numbers, strict=True)
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def measured(group, words, epochs):
    """The rows of sides [(network, attention, variant)] that take turns."""
    # All first: a setting that does not fit ends the command before it measures anything.
    configs = [config_of(*side, words) for side in group]
    rounds = [
        [turn(side[2], config, epochs) for side, config in zip(group, configs, strict=True)]
        for _ in range(ROUNDS)
    ]
    # These two are in the column `machine`.
    shown = [word for word in words if not word.startswith(("device=", "threads="))]
    sides = [
        (network, attention, " ".join([variant, *shown])) for network, attention, variant in group
    ]
    # (rounds, sides, 2) transposed: of steps and of epochs, (sides, rounds) each.
    steps, epochs = np.array([[speeds for _, *speeds in reports] for reports in rounds]).T
    beside_plain = {"step": steps.T, "epoch": epochs.T}
    tables = beside_plain if group[0][2] == "plain" else {"attention": steps.T}
    return pd.concat([rows(rounds[0][0][0], what, sides, found) for what, found in tables.items()])


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    add = parser.add_argument
    add("words", nargs="*", metavar="key=value", help="further words of train.py")
    names = {"type": lambda text: text.split(","), "metavar": "NAME,..."}
    add("--networks", **names, default=["resnet20", "densenet40"], help="(resnet20,densenet40)")
    variants = f"(fp32,fp32 compiled); of {', '.join(VARIANTS)}"
    add("--variants", **names, default=["fp32", "fp32 compiled"], help=variants)
    add("--attentions", **names, default=[], help="whose step is measured as well, beside none")
    add("--epochs", type=int, choices=range(1, 21), metavar="N", default=2, help="of a turn (2)")
    add("--out", metavar="FILE", help="a CSV file for the rows, overwritten (default: none)")
    options = parser.parse_intermixed_args(arguments)
    found = []
    for network in options.networks:
        groups = [[(network, "none", variant) for variant in ["plain", *options.variants]]]
        for variant in options.variants if options.attentions else ():
            groups.append([(network, name, variant) for name in ["none", *options.attentions]])
        for group in groups:
            found.append(measured(group, options.words, options.epochs))
            print(found[-1][COLUMNS[3:]].to_string(index=False), flush=True)
            # After every group: an interrupted measurement keeps what it has.
            if options.out:
                write(options.out, pd.concat(found).to_csv(index=False))


if __name__ == "__main__":
    main()
