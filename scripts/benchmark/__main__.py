"""This project's speed beside a plain training loop, measured in turn, in one run, on this machine.

python scripts/benchmark --out results/benchmark.md            # everything; about an hour on two cores
python scripts/benchmark --quick --parts step,loop            # a first look, in minutes
python scripts/benchmark --parts evaluation --out results/benchmark.md  # that part anew; the file keeps the others
python scripts/benchmark --networks resnet32,densenet64 --csv FILE
python scripts/benchmark --gpu                                # the CUDA rows, into results/benchmark-gpu.md

The reference is the loop below (`plain_*`): torchvision's DataLoader, PIL transforms and two loader processes, eager float32 in
NCHW, torch.optim.SGD, metrics read every step, as torchvision's reference training does it. Each side has a process of its own,
with the same number of threads, which trains for some seconds when it is its turn; all take their turns round after round. A
round during which other work kept a tenth of a processor busy is thrown away, counted and repeated. What counts is the median
over the rounds; a ratio is taken within each round first. The images are random bytes in CIFAR's shape: nothing is downloaded.

Parts and what their `ratio` means
  step        one training step on a batch that is at hand: images/s over the reference's
  epoch       whole epochs, data and metrics included: images/s over the reference's
  attention   one training step with each attention module: its time over that of no attention
  assembly    random crop, mirror and normalisation of a batch of 64 in one process: images/s over DataLoader with PIL
  loop        data, progress and checks around the steps of an epoch: their share of the time of the steps
  evaluation  images/s over a plain no_grad loop at its best batch size, its images at hand as tensors
  startup     from the command to the first finished step: time over a plain Hydra application's (in this script)
  memory      DenseNet-100, batch 64: peak resident memory over the reference's
CPU seconds are those of a side's whole process tree; on a busy machine they still mean something when images/s do not. Peak memory
is that of the training process alone, loader processes left out.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from lcm.training.other_load import Load

from lcm.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("step", "epoch", "attention", "assembly", "loop", "evaluation", "startup", "memory")
BATCH = 64
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
LARGE = "densenet100"  # the network of the part `memory`
PLAIN_BATCHES = (64, 128, 256, 512)  # of the plain evaluation loop
DISTURBED = 0.1  # processors that others keep busy
LOADERS = 2  # loader processes of the reference
COLUMNS = ("network", "attention", "what", "variant", "images_per_second", "cpu_seconds_per_image", "peak_mb", "ratio")


# ------------------------------------------------------------------------------------------------ the reference


def plain_set(count):
    """Random images as torchvision's CIFAR10 gives them: PIL, random crop after padding, mirror, tensor, normalised."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 10, count).tolist()

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return count

        def __getitem__(self, i):
            return transform(Image.fromarray(images[i])), labels[i]

    return Images()


def plain_training(spec):
    """(network, one training step) as in torchvision's reference training."""
    import torch
    import torch.nn.functional as F

    from lcm.models.build import build_network

    network = build_network(spec["network"], seed=0).to(spec["device"]).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step(images, labels):
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, loss

    return network, step


def plain_step(spec):
    import torch

    _, step = plain_training(spec)
    images, labels = (
        torch.randn(BATCH, 3, 32, 32, device=spec["device"]),
        torch.arange(BATCH, device=spec["device"]) % 10,
    )

    def unit():
        step(images, labels)[1].item()
        return BATCH

    return unit


def plain_epoch(spec):
    import torch

    _, step = plain_training(spec)
    device = spec["device"]
    loader = torch.utils.data.DataLoader(
        plain_set(spec["steps"] * BATCH), BATCH, shuffle=True, num_workers=spec["loaders"], persistent_workers=True,
        pin_memory=device == "cuda",
    )  # fmt: skip

    def unit():
        loss_sum = top1_sum = top5_sum = seen = 0
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits, loss = step(images, labels)
            hits = logits.topk(5).indices == labels[:, None]
            loss_sum += loss.item() * len(labels)
            top1_sum += hits[:, 0].sum().item()
            top5_sum += hits.sum().item()
            seen += len(labels)
        return seen

    return unit


def plain_assembly(spec):
    import torch

    loader = torch.utils.data.DataLoader(plain_set(20 * BATCH), BATCH, shuffle=True)
    return lambda: sum(len(labels) for _, labels in loader)


def plain_evaluation(spec):
    import torch

    network, _ = plain_training(spec)
    network.eval()
    images, labels = torch.randn(spec["batch"], 3, 32, 32), torch.arange(spec["batch"]) % 10

    @torch.no_grad()
    def unit():
        (network(images).argmax(1) == labels).sum().item()
        return len(labels)

    return unit


# A plain Hydra application: what train.py's start-up is compared with.
PLAIN_APPLICATION = """
import hydra
import pandas
import torch
import torch.nn.functional as F
import torchvision
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lcm.models import CifarResNet


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    network = CifarResNet(cfg.layers, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=cfg.rate, momentum=0.9)
    loader = DataLoader(TensorDataset(torch.randn(1442, 3, 32, 32), torch.arange(1442) % 10), 64, shuffle=True)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        print("stepped", flush=True)
        break


main()
"""


# ------------------------------------------------------------------------------------------------ this project


def project_trainer(spec, train_images=BATCH, test_images=BATCH):
    """The project's Trainer as train.py makes it, on random images of the network's size."""
    from functools import partial

    import torch

    from lcm.config.options import load as load_config
    from lcm.data.in_memory import Batches, Resident
    from lcm.models.build import build_network
    from lcm.training import device as machine
    from lcm.training.epochs import Trainer
    from lcm.training.folding import fold
    from lcm.training.progress import Progress

    device = machine.choose_device(spec["device"])
    size = load_config("model", spec["network"])["image_size"]
    machine.set_deterministic(False, device)
    autocast = machine.set_precision(spec["precision"], device)
    network = build_network(spec["network"], spec["attention"], seed=0, **spec["overrides"])
    network = network.to(device, memory_format=torch.channels_last)

    def batches(count, batch, **augmentation):
        generator = torch.Generator().manual_seed(count)
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), generator=generator)
        mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
        return Batches(Resident(images, labels, mean, std, **augmentation), batch)

    schedule = load_config("schedule", "cifar")
    return Trainer(
        network,
        batches(train_images, spec["batch"], pad=4, mirror=True, seed=0),
        batches(test_images, schedule["test_batch_size"]),
        schedule,
        device=device,
        autocast=autocast,
        compiled=torch.compile(network) if spec["compile"] else None,
        for_evaluation=partial(fold, image_size=size),
        capture=spec["capture"],
        progress=Progress("lines", schedule["epochs"], spec["batch"]),
        warn=lambda line: print(line, file=sys.stderr),
    )


def project_step(spec):
    trainer = project_trainer(spec, spec["batch"])
    trainer.network.train()
    batches = trainer.train_feed.batches
    images, labels = batches.prepare(next(iter(batches.iterate(0))), trainer.device)

    def unit():
        trainer.step(images, labels)
        trainer.step.totals.tolist()
        return len(labels)

    return unit


def project_epoch(spec):
    trainer = project_trainer(spec, spec["steps"] * BATCH)

    def unit():
        trainer.index = 0
        trainer.step.totals.zero_()
        trainer.train_epoch()
        return trainer.train_feed.images

    return unit


def project_loop(spec):
    """As `project_epoch`, and the seconds inside the steps are counted."""
    trainer = project_trainer(spec, spec["steps"] * BATCH)
    bound = trainer._bind()
    step = bound.step
    spent = {"inside": 0.0}

    def timed(images, labels):
        started = time.perf_counter()
        step(images, labels)
        spent["inside"] += time.perf_counter() - started

    bound.step = timed

    def unit():
        trainer.index = 0
        trainer.step.totals.zero_()
        trainer.train_epoch()
        return trainer.train_feed.images

    unit.spent = spent
    return unit


def project_assembly(spec):
    batches = project_trainer(spec, 20 * BATCH).train_feed.batches

    def unit():
        for raw in batches.iterate(0):
            batches.prepare(raw, "cpu")
        return batches.images

    return unit


def project_evaluation(spec):
    trainer = project_trainer(spec, test_images=spec["steps"] * 100)

    def unit():
        trainer.evaluate()
        return trainer.test_feed.images

    return unit


# ------------------------------------------------------------------------------------------------ one side, one process


def cpu_seconds():
    """CPU seconds so far of this process and its children, loader processes that still run included."""
    times = os.times()
    total = sum(times[:4])
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_mb(device):
    """Peak resident memory of this process, or of its tensors on the GPU, in MB."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def side(spec):
    """A side's process: gets ready, then does `spec["seconds"]` of work for each line on stdin and reports it as JSON."""
    import torch

    from lcm.training.device import keep_pages, set_threads

    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints does not disturb the reports
    if spec["side"] == "project":
        keep_pages()
    set_threads(spec["threads"])
    make = globals()[f"{'project' if spec['side'] == 'project' else 'plain'}_{spec['what']}"]
    wait = torch.cuda.synchronize if spec["device"] == "cuda" else lambda: None
    try:
        if spec["what"] in ("epoch", "loop", "evaluation"):  # how many steps fill a turn
            one = project_step if spec["side"] == "project" else plain_step
            trial = one(spec | {"what": "step", "compile": False, "capture": False})
            trial()
            started = time.perf_counter()
            trial(), trial(), wait()
            seconds = (time.perf_counter() - started) / 2
            spec["steps"] = min(max(4, round(spec["seconds"] / seconds)), 50_000 // BATCH)
            del trial
        started = time.perf_counter()
        unit = make(spec)
        unit(), wait()
        first = time.perf_counter() - started
    except UserError as error:
        print(json.dumps({"refused": str(error)}), file=report)
        return
    print(json.dumps({"ready": first}), file=report)
    for _ in sys.stdin:
        before = cpu_seconds()
        if spec["what"] == "step":
            unit(), wait()  # the caches hold another side's data
        spent = getattr(unit, "spent", {})
        spent.update(dict.fromkeys(spent, 0.0))
        images, cpu, started = 0, cpu_seconds(), time.perf_counter()
        while images == 0 or time.perf_counter() - started < spec["seconds"]:
            images += unit()
        wait()
        wall, now = time.perf_counter() - started, cpu_seconds()
        print(
            json.dumps(
                {
                    "images": images,
                    "wall": wall,
                    "cpu": now - cpu,
                    "cpu_of_turn": now - before,
                    "peak_mb": peak_mb(spec["device"]),
                    **spent,
                }
            ),
            file=report,
        )


def with_project():
    """The environment in which a process elsewhere can import this checkout."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


class Side:
    """The process of one side, from here: start it, let it have its turns, end it."""

    def __init__(self, options, what, variant="fp32", side="project", **spec):
        self.variant = variant
        words = variant.split()
        precision = next((word for word in words if word in ("fp32", "tf32", "bf16")), "fp32")
        self.spec = {
            "side": side, "what": what, "network": "resnet20", "attention": "none", "overrides": {}, "precision": precision,
            "compile": "compiled" in words, "capture": "eager" not in words, "device": "cuda" if options.gpu else "cpu",
            "threads": options.threads, "seconds": options.seconds, "loaders": options.loaders, "batch": BATCH,
        } | spec  # fmt: skip
        self.environment = {}
        self.process = self.refused = None

    def start(self):
        """Start the process and wait until it is ready; False where it refused."""
        command = [sys.executable, __file__, "--side", json.dumps(self.spec)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=os.environ | with_project() | self.environment,
        )  # fmt: skip
        answer = self.answer()
        self.refused, self.first = answer.get("refused"), answer.get("ready")
        if self.refused:
            self.stop()
        return not self.refused

    def ask(self):
        """Let it begin its turn."""
        print(file=self.process.stdin, flush=True)

    def turn(self):
        """Let it have its turn; what it reports."""
        self.ask()
        return self.answer()

    def answer(self):
        """The next line that it reports."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the process of {self.spec} ended with code {self.process.wait()}; its messages are above"
            )
        return json.loads(line)

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None


# ------------------------------------------------------------------------------------------------ rounds and rows


class Rounds(NamedTuple):
    """What the rounds of one group gave: a list of {variant: report}, and how many were thrown away."""

    reports: list
    thrown_away: int
    calm: bool  # False: there was no undisturbed round, and these are disturbed ones
    refused: dict
    first: dict  # seconds of each side's first unit


def take_turns(sides, count, stay=True):
    """Let every side have its turn in each of `count` undisturbed rounds; `stay` keeps the processes between them."""
    calm, disturbed, refused, first = [], [], {}, {}
    with contextlib.ExitStack() as stack:
        for each in sides:
            stack.callback(each.stop)
            if stay:
                each.start()
        if stay:
            refused = {each.variant: each.refused for each in sides if each.refused}
            first = {each.variant: each.first for each in sides}
        while len(calm) < count and len(disturbed) < 2 * count:
            reports, others = {}, 0.0
            working = [each for each in sides if each.variant not in refused]
            if not working:
                break
            shift = (len(calm) + len(disturbed)) % len(working)
            for each in working[shift:] + working[:shift]:
                if not stay and not each.start():
                    refused[each.variant] = each.refused
                    continue
                load, started = Load(), time.monotonic()
                report = reports[each.variant] = each.turn()
                others = max(others, load.others() - report["cpu_of_turn"] / (time.monotonic() - started))
                first[each.variant] = each.first
                if not stay:
                    each.stop()
            reports = {each.variant: reports[each.variant] for each in sides if each.variant in reports}
            (calm if others <= DISTURBED else disturbed).append(reports)
            print(
                f"  round {len(calm) + len(disturbed)}: others kept {max(others, 0):.2f} processors busy",
                file=sys.stderr,
            )
    return Rounds(calm or disturbed, len(disturbed) if calm else 0, bool(calm), refused, first)


class Row(NamedTuple):
    """One line of the table; `ratios` is the ratio of each round."""

    network: str
    attention: str
    what: str
    variant: str
    images_per_second: float | None = None
    cpu_seconds_per_image: float | None = None
    peak_mb: float | None = None
    ratios: tuple = ()
    remark: str = ""

    @property
    def ratio(self):
        return statistics.median(self.ratios) if self.ratios else None


def rate(report):
    return report["images"] / report["wall"]


def summarise(rounds, network, what, reference, ratio=lambda report, base: rate(report) / rate(base), attention="none"):
    """A Row for each variant of a group: medians over the rounds, ratios to the variant `reference` within each round."""
    rows = []
    for variant in rounds.reports[0] if rounds.reports else ():
        reports = [r[variant] for r in rounds.reports]
        ratios = tuple(ratio(r[variant], r[reference]) for r in rounds.reports)
        rows.append(
            Row(
                network,
                attention,
                what,
                variant,
                statistics.median(map(rate, reports)),
                statistics.median(r["cpu"] / r["images"] for r in reports),
                max(r["peak_mb"] for r in reports),
                ratios,
                "" if rounds.calm else "disturbed",
            )
        )
    return rows + [Row(network, attention, what, variant, remark=short(why)) for variant, why in rounds.refused.items()]


def short(refusal):
    """ "not on this processor" for a precision that the machine lacks; the whole reason goes below the table."""
    return "not on this processor" if refusal.startswith("precision=") else refusal


# ------------------------------------------------------------------------------------------------ the parts


class Benchmark:
    """All parts; collects rows, and notes for below the table."""

    def __init__(self, options):
        self.options, self.rows, self.notes = options, [], []
        self.thrown_away = self.kept = 0

    def measure(self, title, sides, stay=True):
        print(f"{title}: {', '.join(each.variant for each in sides)}", file=sys.stderr)
        rounds = take_turns(sides, self.options.rounds, stay)
        self.kept += len(rounds.reports) if rounds.calm else 0
        self.thrown_away += rounds.thrown_away + (0 if rounds.calm else len(rounds.reports))
        self.note(*rounds.refused.values())
        return rounds

    def note(self, *lines):
        self.notes = list(dict.fromkeys([*self.notes, *lines]))

    def side(self, what, variant="fp32", **spec):
        return Side(self.options, what, variant, **spec)

    def step(self, what="step"):
        variants = ("fp32", "fp32 compiled", "bf16", "bf16 compiled")
        for network in self.options.networks:
            sides = [self.side(what, "reference", side="reference", network=network)]
            sides += [self.side(what, variant, network=network) for variant in variants]
            rounds = self.measure(f"{network}, {what}", sides)
            self.rows += summarise(rounds, network, what, "reference")
            if what == "step":
                self.note(f"{network}: the first compiled step takes {rounds.first['fp32 compiled']:.0f} s")

    def epoch(self):
        self.step("epoch")

    def attention(self):
        for network in self.options.networks:
            kinds = ["fp32", "bf16"] if network.startswith("densenet") else ["fp32", "fp32 compiled", "bf16"]
            for kind in kinds:
                sides = [self.side("step", kind, network=network, attention=attention) for attention in ATTENTIONS]
                for each, attention in zip(sides, ATTENTIONS, strict=True):
                    each.variant = attention
                rounds = self.measure(f"{network}, attention, {kind}", sides)
                if rounds.refused:
                    self.rows.append(Row(network, "all", "attention", kind, remark=short(rounds.refused["none"])))
                    continue
                cost = lambda report, base: rate(base) / rate(report)  # noqa: E731
                for row in summarise(rounds, network, "attention", "none", cost):
                    self.rows.append(row._replace(attention=row.variant, variant=kind))

    def assembly(self):
        sides = [self.side("assembly", "reference", side="reference"), self.side("assembly", "project")]
        for each in sides:
            each.spec["threads"] = 1
        for row in summarise(self.measure("assembly", sides), "-", "assembly", "reference"):
            self.rows.append(
                row._replace(remark=f"{1000 * BATCH / row.images_per_second:.2f} ms a batch; {row.remark}".strip("; "))
            )

    def loop(self):
        for network in self.options.networks:
            share = lambda report, base: (report["wall"] - report["inside"]) / report["inside"]  # noqa: E731
            rounds = self.measure(f"{network}, loop", [self.side("loop", "fp32", network=network)])
            self.rows += summarise(rounds, network, "loop", "fp32", share)

    def evaluation(self):
        for network in self.options.networks:
            sides = [
                self.side("evaluation", f"reference, batch {batch}", side="reference", network=network, batch=batch)
                for batch in PLAIN_BATCHES
            ]
            sides += [self.side("evaluation", precision, network=network) for precision in ("fp32", "bf16")]
            rounds = self.measure(f"{network}, evaluation", sides)
            plain = [each.variant for each in sides if each.spec["side"] == "reference"]
            best = max(plain, key=lambda variant: statistics.median(rate(r[variant]) for r in rounds.reports))
            self.rows += summarise(rounds, network, "evaluation", best)

    def memory(self):
        spec = {"network": LARGE}
        sides = [self.side("step", "reference", side="reference", **spec)]
        sides += [self.side("step", f"memory={m}", overrides={"memory": m}, **spec) for m in ("fast", "linear")]
        for each in sides:
            each.spec["seconds"] = 1e-9  # a single step: it takes several seconds
        rounds = self.measure(f"{LARGE}, memory", sides, stay=False)
        self.rows += summarise(rounds, LARGE, "step", "reference")
        self.rows += summarise(rounds, LARGE, "memory", "reference", lambda r, base: r["peak_mb"] / base["peak_mb"])

    def startup(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "config.yaml").write_text("layers: 20\nrate: 0.1\nhydra: {run: {dir: .}, output_subdir: null}\n")
            (folder / "application.py").write_text(PLAIN_APPLICATION)
            commands = {
                "plain Hydra application": [str(folder / "application.py")],
                "train.py": [
                    str(ROOT / "train.py"),
                    "attention=none",
                    f"threads={self.options.threads}",
                    "checkpoint.every=1 step",
                ],
            }
            print("startup", file=sys.stderr)
            calm, disturbed = [], []
            while len(calm) < self.options.rounds and len(disturbed) < 2 * self.options.rounds:
                reports, others = {}, 0.0
                for variant, command in commands.items():
                    runs = folder / f"runs{len(calm) + len(disturbed)}"
                    load = Load()
                    reports[variant] = first_step([sys.executable, *command], runs, self.options.threads)
                    others = max(others, load.others())  # the command has ended: its work is not that of others
                (calm if others <= DISTURBED else disturbed).append(reports)
        self.kept, self.thrown_away = self.kept + len(calm), self.thrown_away + len(disturbed)
        rounds = calm or disturbed
        for variant in commands:
            wall, cpu = (statistics.median(r[variant][key] for r in rounds) for key in ("wall", "cpu"))
            ratios = tuple(r[variant]["wall"] / r["plain Hydra application"]["wall"] for r in rounds)
            remark = f"{wall:.2f} s, {cpu:.2f} CPU-s{'' if calm else '; disturbed'}"
            self.rows.append(Row("resnet20", "none", "startup", variant, ratios=ratios, remark=remark))

    def gpu(self):
        """The CUDA rows: a whole step in a graph, eager and compiled ones, runs packed onto the card, memory."""
        for network in self.options.networks:
            sides = [self.side("epoch", "reference", side="reference", network=network)]
            for precision in ("fp32", "tf32", "bf16"):
                sides += [
                    self.side("epoch", f"{precision} {how}", network=network)
                    for how in ("eager", "captured", "captured compiled")
                ]
            rounds = self.measure(f"{network}, epoch", sides)
            for row in summarise(rounds, network, "epoch", "reference"):
                if row.images_per_second:
                    minutes = 300 * 50_000 / row.images_per_second / 60
                    row = row._replace(
                        remark=f"300 epochs of CIFAR: {minutes:.1f} min of training; {row.remark}".strip("; ")
                    )
                self.rows.append(row)
        for network in self.options.networks:
            self.rows += packed(self.options, network, {}, "taking turns")
            try:
                with multi_process_service() as environment:
                    self.rows += packed(self.options, network, environment, "MPS")
            except (OSError, subprocess.CalledProcessError, SystemExit) as error:
                self.note(f"no packed runs with MPS ({str(error).splitlines()[0]})")
        spec = {"network": LARGE}
        sides = [self.side("epoch", "reference", side="reference", **spec)]
        sides += [
            self.side("epoch", f"{precision} captured, memory={m}", overrides={"memory": m}, **spec)
            for precision in ("fp32", "bf16")
            for m in ("fast", "linear")
        ]
        rounds = self.measure(f"{LARGE}, memory", sides, stay=False)
        self.rows += summarise(rounds, LARGE, "epoch", "reference")
        self.rows += summarise(rounds, LARGE, "memory", "reference", lambda r, base: r["peak_mb"] / base["peak_mb"])


def packed(options, network, environment, how, counts=(1, 2, 4)):
    """Rows for several runs at once on one card: images/s of all together over those of one alone."""
    sides = [Side(options, "epoch", "fp32 captured", network=network) for _ in range(max(counts))]
    rounds = []
    with contextlib.ExitStack() as stack:
        for each in sides:
            stack.callback(each.stop)
            each.environment = environment
            each.start()
        for _ in range(options.rounds):
            totals = {}
            for count in counts:
                for each in sides[:count]:
                    each.ask()
                totals[count] = sum(rate(each.answer()) for each in sides[:count])
            rounds.append(totals)
    return [
        Row(
            network, "none", "packed", f"{count} run{'s' * (count > 1)} at once, {how}",
            images_per_second=statistics.median(r[count] for r in rounds),
            ratios=tuple(r[count] / r[counts[0]] for r in rounds),
        )
        for count in counts
    ]  # fmt: skip


@contextlib.contextmanager
def multi_process_service():
    """NVIDIA's MPS, with which kernels of several processes run at once instead of in turns: the environment to find it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        control = ["nvidia-cuda-mps-control"]
        subprocess.run([*control, "-d"], env=os.environ | environment, check=True, capture_output=True)
        try:
            yield environment
        finally:
            subprocess.run(control, input="quit\n", text=True, env=os.environ | environment, capture_output=True)


def first_step(command, runs, threads):
    """Seconds, and CPU seconds, from the start of a command to its first training step.

    The plain application says so itself; train.py is seen to have written its first checkpoint, which it does after that step.
    """
    environment = os.environ | with_project() | {"OMP_NUM_THREADS": str(threads)}
    ours = command[1].endswith("train.py")
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"runs={runs}"] if ours else command,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=runs.parent,
    )  # fmt: skip
    try:
        if ours:
            while not any(runs.glob("*/*/*/*/checkpoint.pt")):
                if process.poll() is not None:
                    raise SystemExit(f"train.py ended before its first step:\n{process.stderr.read()}")
                time.sleep(0.002)
        elif "stepped" not in (process.stdout.readline() or ""):
            raise SystemExit(f"the plain application failed:\n{process.stderr.read()}")
        wall = time.perf_counter() - started
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.communicate()
    return {"wall": wall, "cpu": cpu}


# ------------------------------------------------------------------------------------------------ the table


def markdown(rows):
    """The rows as a Markdown table."""
    lines = [
        "| network | attention | what | variant | images/s | CPU-ms/image | peak MB | ratio (lowest-highest) | |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f} ({min(row.ratios):.3f}-{max(row.ratios):.3f})"
        cells = (
            row.network, row.attention, row.what, row.variant,
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            "" if row.cpu_seconds_per_image is None else f"{1000 * row.cpu_seconds_per_image:.3f}",
            "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            ratio, row.remark,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(file, rows):
    """The rows with COLUMNS as a CSV file; a figure that there is not is an empty cell."""
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            numbers = (row.images_per_second, row.cpu_seconds_per_image, row.peak_mb, row.ratio)
            writer.writerow([*row[:4], *("" if number is None else f"{number:.6g}" for number in numbers)])


def describe(options):
    """The machine and how it was measured, in a line."""
    import torch

    from lcm.training.device import processor

    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    machine = f"{processor()}, {threads}, {options.loaders} loader processes for the reference"
    if options.gpu:
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    return f"{machine}, torch {torch.__version__}"


def section(benchmark, command, withheld):
    """What one part has measured, as Markdown: the command, the machine, the table, the notes."""
    words = f"{describe(benchmark.options)}; {time.strftime('%Y-%m-%d')}; {benchmark.kept} undisturbed rounds, "
    words += f"{benchmark.thrown_away} disturbed ones thrown away"
    if any("disturbed" in row.remark for row in benchmark.rows):
        words += "; where no round was undisturbed, disturbed ones are shown and marked: only their CPU seconds mean something"
    words += f"; a virtual machine's host withheld {withheld:.2f} processors on average" * (withheld > 0)
    notes = "".join(f"\n- {note}" for note in benchmark.notes)
    return f"`{command}`\n\n{words}.\n\n{markdown(benchmark.rows)}\n{notes}".rstrip()


def write_sections(file, title, sections):
    """A page with a section for each part; parts that were not measured now keep the section that the page has."""
    before = Path(file).read_text(encoding="utf-8").split("\n## ")[1:] if Path(file).exists() else []
    kept = {part: text.strip() for part, _, text in (section.partition("\n") for section in before)}
    both = kept | sections
    order = [part for part in ("gpu", *PARTS) if part in both]
    page = [f"# {title}\n", *(f"## {part}\n\n{both[part]}\n" for part in order)]
    Path(file).write_text("\n".join(page), encoding="utf-8")


def parse(arguments):
    """The command line as options. Raises UserError for what it cannot mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, with commas (default: all)")
    parser.add_argument(
        "--networks", default="resnet20,densenet40", help="networks for 32x32 images (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="undisturbed rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the processors that this process may use)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: a look, no measurement")
    parser.add_argument("--csv", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--out", metavar="FILE", help="write the tables there too, part by part")
    parser.add_argument("--gpu", action="store_true", help="the CUDA rows; --out is results/benchmark-gpu.md then")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts, options.networks = options.parts.split(","), options.networks.split(",")
    if unknown := [part for part in options.parts if part not in PARTS]:
        raise UserError(f"--parts {unknown[0]}: there is no such part; choose from {', '.join(PARTS)}")
    if options.rounds < 1 or options.seconds <= 0 or (options.threads is not None and options.threads < 1):
        raise UserError("--rounds and --threads must be at least 1, --seconds above 0")
    from lcm.config.options import choices, load

    small = [name for name in choices("model") if load("model", name)["image_size"] == 32]
    if unknown := [name for name in options.networks if name not in small]:
        raise UserError(f"--networks {unknown[0]}: no network for 32x32 images; choose from {', '.join(small)}")
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    return options


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    if options.side:
        return side(json.loads(options.side))
    import torch

    from lcm.training.device import available_processors

    if options.gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch finds no usable NVIDIA GPU or driver; leave it out for the CPU rows")
    options.out = options.out or (str(ROOT / "results" / "benchmark-gpu.md") if options.gpu else None)
    for name in ("csv", "out"):
        file = getattr(options, name)
        if file and not Path(file).resolve().parent.is_dir():
            raise UserError(f"--{name} {file}: there is no folder {Path(file).resolve().parent}; make it first")
    options.threads = options.threads or available_processors()
    options.loaders = min(8, available_processors()) if options.gpu else LOADERS
    command = " ".join(["python", "scripts/benchmark", *(sys.argv[1:] if arguments is None else arguments)])
    title, sections, rows = "Speed on a GPU" if options.gpu else "Speed on a CPU", {}, []
    for part in ("gpu",) if options.gpu else options.parts:
        benchmark, load = Benchmark(options), Load()
        getattr(benchmark, part)()
        sections[part] = section(benchmark, command, load.withheld())
        print(f"## {part}\n\n{sections[part]}\n")
        rows += benchmark.rows
        if options.out:
            write_sections(options.out, title, sections)
    if options.csv:
        write_csv(options.csv, rows)


if __name__ == "__main__":
    main()
