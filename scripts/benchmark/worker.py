"""What a side does in its process: it gets ready, then works for some seconds whenever it is asked to."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import time
from pathlib import Path

IMAGES = 50_000  # of an epoch of CIFAR: the longest pass over the data


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
    steps: int = 1  # training steps of a unit of work; 0: as many as fill a turn


class Worker:
    """A side at work in this process. `first`: seconds of the first unit of work, set-up and compilation included.

    Raises:
        UserError: the machine cannot do what the side needs, for example bf16.
    """

    def __init__(self, spec):
        import torch

        self.spec = spec
        self.functions = importlib.import_module(f"benchmark.{spec.side}")
        self.wait = torch.cuda.synchronize if spec.device == "cuda" else lambda: None
        torch.set_num_threads(spec.threads)
        # The same for both sides: cuDNN's default would give a float32 reference TF32 convolutions.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        spec.steps = spec.steps or self._steps_in_a_turn()
        started = time.perf_counter()
        self.unit = getattr(self.functions, spec.what)(spec)
        self.unit()
        self.wait()
        self.first = time.perf_counter() - started

    def _steps_in_a_turn(self):
        unit = self.functions.step(dataclasses.replace(self.spec, compile=False, steps=1))
        unit()
        started = time.perf_counter()
        unit()
        unit()
        self.wait()
        seconds = (time.perf_counter() - started) / 2
        return min(max(4, round(self.spec.seconds / seconds)), IMAGES // self.spec.batch)

    def turn(self):
        """Work for `spec.seconds`, one unit at least; what was done, as a dict."""
        before = cpu_seconds()
        if self.spec.what == "step":
            self.unit()  # not counted: the caches hold another side's data
            self.wait()
        images, cpu, started = 0, cpu_seconds(), time.perf_counter()
        while images == 0 or time.perf_counter() - started < self.spec.seconds:
            images += self.unit()
        self.wait()
        wall, now, peak = time.perf_counter() - started, cpu_seconds(), peak_mb(self.spec.device)
        return {"images": images, "wall": wall, "cpu": now - cpu, "cpu_of_turn": now - before, "peak_mb": peak}


def prepare(spec):
    """Make this process the side of a Spec; returns `first`, see Worker."""
    global worker
    worker = Worker(spec)
    return worker.first


def turn():
    """A turn of the side that this process is."""
    return worker.turn()


def rate(report):
    """Images a second of one report."""
    return report["images"] / report["wall"]


def cpu_seconds():
    """CPU seconds so far of this process and its children, loader processes that still run included."""
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
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
