"""The process of a side: it gets ready, then works for some seconds at each turn."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import time
from pathlib import Path


@dataclasses.dataclass
class Spec:
    """What a side does, and with what."""

    side: str = "project"  # the file whose function `what` makes the unit of work
    what: str = "step"
    network: str = "resnet20"
    attention: str = "none"
    overrides: dict = dataclasses.field(default_factory=dict)  # of the network's config
    precision: str = "fp32"
    compile: bool = False
    capture: bool = True  # whole steps as CUDA graphs, on a GPU
    channels_last: bool = True
    device: str = "cpu"
    threads: int | str = 1  # "auto": this project's choice
    seconds: float = 5.0  # of a turn
    loaders: int = 2  # loader processes of the reference
    batch: int = 64
    steps: int = 1  # training steps of a unit of work


class Worker:
    """A side at work in this process. It has done one unit of work, so that everything is compiled.

    Raises:
        UserError: the machine cannot do what the side needs, for example bf16.
    """

    def __init__(self, spec):
        import torch

        self.spec = spec
        self.wait = torch.cuda.synchronize if spec.device == "cuda" else lambda: None
        torch.set_num_threads(spec.threads)
        # The same for both sides: cuDNN's default would give a float32 reference TF32 convolutions.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
            spec.precision == "tf32"
        )
        torch.backends.cudnn.benchmark = True
        self.unit = getattr(importlib.import_module(f"benchmark.{spec.side}"), spec.what)(spec)
        self.unit()
        self.wait()

    def turn(self):
        """Work for `spec.seconds`, one unit at least; returns what was done, as a dict."""
        before = cpu_seconds()
        if self.spec.what == "step":
            self.unit()  # not counted: the caches hold another side's data
            self.wait()
        images, cpu, started = 0, cpu_seconds(), time.perf_counter()
        while images == 0 or time.perf_counter() - started < self.spec.seconds:
            images += self.unit()
        self.wait()
        wall, now, peak = time.perf_counter() - started, cpu_seconds(), peak_mb(self.spec.device)
        return {
            "images": images,
            "wall": wall,
            "cpu": now - cpu,
            "cpu_of_turn": now - before,
            "peak_mb": peak,
        }


def prepare(spec):
    """Make this process the side of a Spec."""
    global worker
    worker = Worker(spec)


def turn():
    """A turn of this process's side."""
    return worker.turn()


def rate(report):
    """Images a second of one report."""
    return report["images"] / report["wall"]


def cpu_seconds():
    """CPU seconds so far of this process and its children, running loader processes included."""
    total = sum(os.times()[:4])
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
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
