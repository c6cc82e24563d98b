"""Time this project's training and a plain PyTorch loop in turns, on this machine.

    python scripts/benchmark.py                            # a quarter of an hour on two cores
    python scripts/benchmark.py --out results/benchmark.csv --attentions se,lcm1,lcm2
    python scripts/benchmark.py --variants bf16 device=cuda channels_last=false
    python scripts/benchmark.py --quick                    # under a minute: shows that it works

What is compared with what: docs/benchmark.md.
"""

import argparse
import contextlib
import datetime
import multiprocessing
import statistics
import time
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401  before lcm
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import train
from lcm.config.compose import CONFIGS, load
from lcm.data import build_data
from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, exit_on_user_error, listed
from lcm.files import write
from lcm.models.build import build_network
from lcm.runs.grid import problems
from lcm.training.device import choose_device, describe_device, set_precision, set_up

VARIANTS = {
    "fp32": [],
    "fp32 compiled": ["compile=true"],
    "bf16": ["precision=bf16"],
    "bf16 compiled": ["precision=bf16", "compile=true"],
}
OWN = ("model", "attention", "precision", "compile", "data")  # no argument may set them
SECONDS = 5  # of a turn
QUICK = ["model.layers=8", "schedule.batch_size=16"]
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
    """train.py's config, with random images for `steps` steps per epoch. Raises UserError."""
    size = load("model", network)["image_size"]
    data = "cifar10" if size == 32 else "mini_imagenet"
    overrides = [f"model={network}", f"data={data}", "schedule=cifar", *words]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            config = OmegaConf.to_container(compose("train", overrides=overrides), resolve=True)
    except HydraException as error:
        raise UserError(f"train.py {' '.join(overrides)}: {str(error).splitlines()[0]}") from None
    if found := problems(config):
        raise listed("nothing was measured:", found)
    images = steps * config["schedule"]["batch_size"]
    config["data"] = {"_target_": "benchmark.Invented", "images": images, "image_size": size}
    return config


def turns(pipe):
    """For each epoch of each turn a Counter of `images` and the seconds of `step` and `epoch`."""
    for seconds in iter(pipe.recv, None):
        clock = Counter()
        while clock["images"] == 0 or clock["epoch"] < seconds:
            yield clock
        pipe.send({what: clock["images"] / clock[what] for what in ("step", "epoch")})


class Turns:
    """In place of lcm.runs.run.Run: `turns` instead of a number of epochs, nothing on the disk.

    The evaluation after an epoch is not timed. A step has its batch in it.
    """

    def __init__(self, pipe, threads):
        self.pipe = pipe
        self.threads = threads

    def begin(self, data, complexity, threads, device):
        self.pipe.send(device)

    def epochs(self, state, batches):
        self.batches = batches
        for epoch, clock in enumerate(turns(self.pipe), 1):
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


def project(pipe, config):
    """This project's side: train.py's own `fit`."""
    train.fit(config, Turns(pipe, config["threads"]))


class Transformed(Dataset):
    """The same images as tensors (3, H, W), each cropped, flipped and normalised by itself."""

    def __init__(self, resident):
        self.images = resident.images.permute(0, 3, 1, 2).contiguous()
        self.labels = resident.labels
        crop = transforms.RandomCrop(self.images.shape[2:], padding=resident.pad)
        mirror = transforms.RandomHorizontalFlip(0.5 if resident.mirror else 0.0)
        to_float = transforms.ConvertImageDtype(torch.float32)
        normalise = transforms.Normalize(resident.mean, resident.std)
        self.transform = transforms.Compose([crop, mirror, to_float, normalise])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def plain(pipe, config):
    """The plain side, as in torchvision's reference training and most public code.

    Eager float32 in NCHW, torch's SGD, a DataLoader in the same process, metrics read in every
    step. Its step begins when the batch is on the device.
    """
    schedule = config["schedule"]
    device, _, _ = set_up(
        config["threads"], config["device"], "fp32", deterministic=False, allocator=False
    )
    batches = build_data(config["data"]).train(schedule["batch_size"], seed=0)
    loader = DataLoader(Transformed(batches.resident), schedule["batch_size"], shuffle=True)
    network = build_network(config["model"], config["attention"], seed=0).to(device)
    settings = {key: schedule[key] for key in ("momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(network.parameters(), schedule["learning_rate"], **settings)
    pipe.send(describe_device(device))
    for clock in turns(pipe):
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


class Side:
    """A process that trains at each turn, while a `with` block of it lasts.

    Args:
        network, attention: names of files in configs/.
        variant: of VARIANTS, or "plain".
        words: further arguments of train.py.
        steps: of an epoch.

    Raises what the process raises, such as UserError for what the machine cannot do.
    """

    def __init__(self, network, variant, attention="none", words=(), steps=20):
        shown = [word for word in words if not word.startswith(("device=", "threads="))]
        self.names = {"network": network, "attention": attention}
        self.names["variant"] = " ".join([variant, *shown])
        self.loop = plain if variant == "plain" else project
        own = [*VARIANTS.get(variant, []), f"attention={attention}"]
        self.config = composed(network, [*words, *own], steps)

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(self.loop, theirs, self.config))
        self.process.start()
        theirs.close()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # it has ended already
            self.pipe.send(None)
        self.process.join()

    def get_ready(self):
        """A turn that is not counted: kernels are chosen, buffers allocated."""
        self.machine = self._answer()
        self.turn()

    def turn(self, seconds=0):
        """{"step": images per second, "epoch": the same} over some seconds, at least one epoch."""
        self.pipe.send(seconds)
        return self._answer()

    def _answer(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise UserError("the process of a side has died: out of memory?") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def work(loop, pipe, config):
    """What the process of a side does."""
    try:
        loop(pipe, config)
    except Exception as error:
        pipe.send(error)


def rounds(sides, count, seconds):
    """The reports of all sides, one list per round."""
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.enter_context(side).get_ready()
        return [[side.turn(seconds) for side in sides] for _ in range(count)]


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
        today = [f"{datetime.date.today()}", torch.__version__, side.machine, what]
        row = [*today, *side.names.values(), *(f"{n:.6g}" for n in numbers), f"{len(reports)}"]
        print("  ".join(f"{cell:>12}" for cell in row[3:]), flush=True)
        yield dict(zip(COLUMNS, row, strict=True))


def read(file):
    """The rows of an existing file, as text. Raises UserError if it is no such table."""
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    with contextlib.suppress(OSError, ValueError):
        found = pd.read_csv(file, dtype=str)
        if list(found.columns) == COLUMNS:
            return found
    raise UserError(f"{file}: not a table of this script; name another file with --out")


def measurable(device):
    """The variants that a device can compute."""
    try:
        set_precision("bf16", choose_device(device))
    except UserError as error:
        print(f"without bf16: {error}")
        return [variant for variant in VARIANTS if "bf16" not in variant]
    return list(VARIANTS)


def groups(options):
    """(what is measured, the sides that take turns) for each network and its attentions."""
    words = options.words
    for network in options.networks:
        variants = options.variants or measurable(composed(network, words)["device"])
        names = ["plain", *variants]
        yield ("step", "epoch"), [Side(network, n, "none", words, options.steps) for n in names]
        for variant in variants if options.attentions else ():
            names = ["none", *options.attentions]
            yield ("attention",), [Side(network, variant, n, words, options.steps) for n in names]


def parse(arguments):
    """The command line as options. Raises UserError for invalid ones."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add(
        "words", nargs="*", metavar="key=value", help="further arguments of train.py, for all sides"
    )
    names = {"type": lambda text: text.split(","), "default": []}
    add("--networks", **names, help="default: resnet20,densenet40")
    add("--variants", **names, help=f"of {','.join(VARIANTS)} (default: what the machine has)")
    add("--attentions", **names, help="modules whose step is measured too, relative to none")
    add("--steps", type=int, default=20, help="steps of an epoch (default: %(default)s)")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--quick", action="store_true", help="ResNet-8, fp32, one round of one epoch")
    add("--out", type=Path, metavar="FILE", help="add or replace rows in this file (default: none)")
    options = parser.parse_intermixed_args(arguments)
    if options.quick:
        options.words += QUICK
        vars(options).update(networks=["resnet20"], variants=["fp32"], rounds=1)
    options.networks = options.networks or ["resnet20", "densenet40"]
    if unknown := set(options.variants) - set(VARIANTS):
        raise UserError(f"--variants {unknown.pop()}: choose from {', '.join(VARIANTS)}")
    if min(options.rounds, options.steps) < 1:
        raise UserError("--rounds and --steps must be at least 1")
    for word in options.words:
        key = word.partition("=")[0]
        if key in OWN or key.startswith("data."):
            raise UserError(f"{word}: the benchmark sets this itself, see --help")
    return options


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    table = read(options.out) if options.out else pd.DataFrame(columns=COLUMNS)
    for whats, sides in list(
        groups(options)
    ):  # all arguments are checked before the first side starts
        reports = rounds(sides, options.rounds, 0 if options.quick else SECONDS)
        new = pd.DataFrame([row for what in whats for row in rows(sides, reports, what)])
        table = pd.concat([table, new]).drop_duplicates(KEY, keep="last")
        if options.out:
            write(options.out, table.to_csv(index=False))


if __name__ == "__main__":
    main()
