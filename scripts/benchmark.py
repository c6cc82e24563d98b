"""This project's training beside a plain PyTorch loop: in turns, in one run, on this machine.

    python scripts/benchmark.py                            # a quarter of an hour on two cores
    python scripts/benchmark.py --out results/benchmark.csv --attentions se,lcm1,lcm2
    python scripts/benchmark.py --variants bf16 device=cuda channels_last=false
    python scripts/benchmark.py --networks resnet20 --variants fp32 --rounds 1 --seconds 0

What is compared with what: docs/benchmark.md. The last command shows that it works.
"""

import datetime
import functools
import multiprocessing
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import checkout  # before lcm
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

import train
from lcm.config.compose import COMPOSITION_ERRORS, CONFIGS, composition_problem, load, resolve
from lcm.data import build_data
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, exit_on_user_error, listed
from lcm.files import write
from lcm.models.build import build_network
from lcm.runs.grid import problems
from lcm.training.device import describe_device, set_up

VARIANTS = {
    "fp32": [],
    "fp32 compiled": ["compile=true"],
    "bf16": ["precision=bf16"],
    "bf16 compiled": ["precision=bf16", "compile=true"],
}
OWN = ("model=", "attention=", "precision=", "compile=", "data")  # what no word may begin with
KEY = ["machine", "what", "network", "attention", "variant"]  # a row replaces the one of its key
COLUMNS = ["date", "torch", *KEY, "images_per_second", "ratio", "low", "high", "rounds"]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10's


class Invented(ResidentSet):
    """Random bytes in the shape of a network's images; the first ten are the test images, too."""

    def __init__(self, images, image_size, pad=4, mirror=True):
        super().__init__("invented", 10, image_size, workers=0, pad=pad, mirror=mirror)
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (images, image_size, image_size, 3), np.uint8)
        labels = draw.integers(0, 10, images)
        self.hold((pixels, labels), (pixels[:10], labels[:10]), list("0123456789"), MEAN, STD)


def composed(network, words=(), steps=20):
    """train.py's config with invented images for `steps` steps an epoch. UserError: it is bad."""
    size = load("model", network)["image_size"]
    data = "cifar10" if size == 32 else "mini_imagenet"
    overrides = [f"model={network}", f"data={data}", "schedule=cifar", *words]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            config = resolve(compose("train", overrides=overrides))
    except COMPOSITION_ERRORS as error:
        raise UserError(f"train.py {' '.join(overrides)}: {composition_problem(error)}") from error
    if found := problems(config):
        raise listed("nothing was measured:", found)
    images = steps * config["schedule"]["batch_size"]
    config["data"] = {"_target_": "benchmark.Invented", "images": images, "image_size": size}
    return config


class Timed:
    """In place of lcm.runs.run.Run: epochs for some seconds, nothing on the disk.

    The evaluation after an epoch is not timed. A step has its batch in it.
    """

    def __init__(self, threads, seconds):
        self.threads = threads
        self.seconds = seconds

    def begin(self, data, complexity, threads, device):
        self.machine = device

    def epochs(self, state, batches):
        self.batches = batches
        for epoch, clock in enumerate(timed_epochs(self.seconds), 1):
            self.clock = clock
            self.began = time.perf_counter()
            yield epoch, 0

    def after_step(self, epoch, done):
        if done == len(self.batches):
            if self.batches.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.began
            self.clock.update(images=self.batches.images, step=seconds, epoch=seconds)

    def after_test_step(self, *_, **__):
        pass

    record = after_test_step


def timed_epochs(seconds):
    """For each epoch a Counter of `images` and the seconds of `step` and `epoch`, for it to add to.

    The first epoch is not counted: kernels are chosen, buffers allocated. One at least is.
    """
    yield Counter()
    clock = Counter()
    while clock["images"] == 0 or clock["epoch"] < seconds:
        yield clock


def project(config, seconds):
    """This project's side, train.py's own `fit`: (machine, Counter)."""
    run = Timed(config["threads"], seconds)
    train.fit(config, run)
    return run.machine, run.clock


class Transformed(TensorDataset):
    """Images (3, H, W), each transformed by itself, and labels."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return self.transform(image), label


def plain(config, seconds):
    """The other side, as torchvision's references and most public code have it: (machine, Counter).

    Eager float32 in NCHW, torch's SGD, a DataLoader in the same process, metrics read in every
    step. Its step begins when the batch is on the device.
    """
    schedule = config["schedule"]
    device, _, _ = set_up(
        config["threads"], config["device"], "fp32", deterministic=False, allocator=False
    )
    data = build_data(config["data"]).train(schedule["batch_size"], seed=0).resident
    dataset = Transformed(data.images.permute(0, 3, 1, 2).contiguous(), data.labels)
    dataset.transform = transforms.Compose(
        [
            transforms.RandomCrop(data.images.shape[1:3], padding=data.pad),
            transforms.RandomHorizontalFlip(0.5 * data.mirror),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    loader = DataLoader(dataset, schedule["batch_size"], shuffle=True)
    network = build_network(config["model"], config["attention"], seed=0).to(device)
    settings = {key: schedule[key] for key in ("momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), schedule["learning_rate"], **settings)
    for clock in timed_epochs(seconds):
        began = time.perf_counter()
        loss_sum = hits = 0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            ready = time.perf_counter()
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            hits += (logits.argmax(1) == labels).sum().item()
            clock.update(images=len(labels), step=time.perf_counter() - ready)
        clock.update(epoch=time.perf_counter() - began)
    return describe_device(device), clock


class Side:
    """One of those that take turns. After a turn, `machine` is its device in words.

    Args:
        network, attention: names of files in configs/.
        variant: of VARIANTS, or "plain".
        words: further words of train.py.
        steps: of an epoch.
    """

    def __init__(self, network, variant, attention="none", words=(), steps=20):
        shown = [word for word in words if not word.startswith(("device=", "threads="))]
        self.names = [network, attention, " ".join([variant, *shown])]
        self.loop = plain if variant == "plain" else project
        own = [*VARIANTS.get(variant, []), f"attention={attention}"]
        self.config = composed(network, [*words, *own], steps)

    def turn(self, seconds=0):
        """{"step": images a second, "epoch": the same} over some seconds, one epoch at least.

        Raises what its process raises: UserError where the machine cannot do what words ask for.
        """
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            try:
                self.machine, clock = process.submit(self.loop, self.config, seconds).result()
            except BrokenProcessPool:
                raise UserError("the process of a side has died: out of memory?") from None
        return {what: clock["images"] / clock[what] for what in ("step", "epoch")}


def rows(sides, reports, what):
    """A row for each side, its ratios taken within a round.

    Of `step` and `epoch`: images/s over those of the first side. Of `attention`: time of a step.
    """
    key = "step" if what == "attention" else what
    for index, side in enumerate(sides):
        rates = [report[index][key] for report in reports]
        ratios = [rate / report[0][key] for rate, report in zip(rates, reports, strict=True)]
        if what == "attention":
            ratios = [1 / ratio for ratio in ratios]
        numbers = [statistics.median(rates), statistics.median(ratios), min(ratios), max(ratios)]
        row = [f"{datetime.date.today()}", torch.__version__, side.machine, what, *side.names]
        yield [*row, *(f"{number:.6g}" for number in numbers), f"{len(reports)}"]


def groups(options):
    """(what is measured, the sides that take turns) for each network and its attentions."""
    for network in options.networks:
        own = functools.partial(Side, network, words=options.words, steps=options.steps)
        yield ("step", "epoch"), [own(variant) for variant in ["plain", *options.variants]]
        for variant in options.variants if options.attentions else ():
            yield ("attention",), [own(variant, name) for name in ["none", *options.attentions]]


def parse(arguments):
    """The command line as options. Raises UserError for what it cannot mean."""
    parser = checkout.parser(__doc__)
    add = parser.add_argument
    add("words", nargs="*", metavar="key=value", help="further words of train.py, for all sides")
    names = {"type": lambda text: text.split(","), "metavar": "NAME,..."}
    add("--networks", **names, default=["resnet20", "densenet40"], help="resnet20,densenet40")
    add("--variants", **names, default=["fp32", "fp32 compiled"], help=f"of {', '.join(VARIANTS)}")
    add("--attentions", **names, default=[], help="whose step is measured as well, beside none")
    add("--steps", type=int, default=20, help="of an epoch (default: %(default)s)")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--seconds", type=float, default=5, help="of a turn (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="where rows are added or replaced (default: none)")
    options = parser.parse_intermixed_args(arguments)
    if unknown := set(options.variants) - set(VARIANTS):
        raise UserError(f"--variants {unknown.pop()}: choose from {', '.join(VARIANTS)}")
    if min(options.rounds, options.steps) < 1:
        raise UserError("--rounds and --steps must be at least 1")
    for word in options.words:
        if word.startswith(OWN):
            raise UserError(f"{word}: the benchmark chooses this itself, see --help")
    return options


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    table = pd.DataFrame(columns=COLUMNS)
    if options.out and options.out.exists():
        table = pd.read_csv(options.out, dtype=str)
    if list(table.columns) != COLUMNS:
        raise UserError(f"{options.out}: not a table of this script; name another file with --out")
    for whats, sides in list(groups(options)):  # each word is checked before the first side starts
        reports = [[side.turn(options.seconds) for side in sides] for _ in range(options.rounds)]
        found = [row for what in whats for row in rows(sides, reports, what)]
        new = pd.DataFrame(found, columns=COLUMNS)
        print(new[COLUMNS[3:]].to_string(index=False), flush=True)
        table = pd.concat([table, new]).drop_duplicates(KEY, keep="last")
        if options.out:
            write(options.out, table.to_csv(index=False))


if __name__ == "__main__":
    main()
