"""Training from the first epoch, or from a checkpoint, to the last: `fit`, `train_epoch`, `evaluate`.

Everything an epoch draws is a function of (seed, epoch) and the learning rate of the epoch alone, so a run that was stopped
at any step and continued ends with the same bits as one that was not.
"""

import contextlib
import json
import math
import time

import torch

from lcm.errors import NotFinite, Stopped, UserError
from lcm.training import checkpoint
from lcm.training.graphs import Eager, bind, can_capture, feed
from lcm.training.sgd import SGD
from lcm.training.signals import StopRequest
from lcm.training.step import TestStep, TrainStep


def learning_rate(schedule, epoch):
    """The rate of an epoch (from 1): divided by `divide_by` when each share in `divide_at` of the epochs is over."""
    passed = sum(epoch - 1 >= round(share * schedule["epochs"], 6) for share in schedule["divide_at"])
    return schedule["learning_rate"] / schedule["divide_by"] ** passed


def make_optimizer(network, schedule):
    """SGD as the paper has it (section 4.1.2), on every parameter."""
    return SGD(
        network.parameters(),
        schedule["learning_rate"],
        momentum=schedule["momentum"],
        nesterov=schedule["nesterov"],
        weight_decay=schedule["weight_decay"],
    )


class Every:
    """When a checkpoint is due inside an epoch: "epoch" (never), "500 steps" or "10 minutes"."""

    def __init__(self, every):
        count, _, unit = every.partition(" ")
        self.steps = int(count) if unit.startswith("step") else None
        self.seconds = float(count) * 60 if unit.startswith("minute") else None
        self.last = time.monotonic()

    def due(self, step):
        if self.seconds and time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            return True
        return bool(self.steps and step % self.steps == 0)


class Trainer:
    """A network with its data, schedule and place on the disk; what `fit` trains.

    `compiled` is the network as it is called in training (torch.compile's, or the network itself), `for_evaluation` makes the
    one that is called in evaluation. `directory` None keeps everything in memory; a checkpoint carries `run` (run.json) and the
    record so far, so that it can bring both back.
    """

    def __init__(
        self, network, train, test, schedule, *, device, autocast, compiled=None, for_evaluation=None, capture=True,
        directory=None, run=None, log=None, every="epoch", stop=None, progress=None, warn=print,
    ):  # fmt: skip
        self.network, self.schedule, self.device = network, schedule, device
        self.optimizer = make_optimizer(network, schedule)
        self.train_feed, self.test_feed = feed(train, device), feed(test, device)
        self.step = TrainStep(network if compiled is None else compiled, self.optimizer, autocast, device)
        self.compiling = compiled is not None
        self.for_evaluation = for_evaluation or (lambda network: network)
        self.autocast, self.capture, self.warn = autocast, capture, warn
        self.directory, self.run, self.log = directory, run, log
        self.every, self.stop, self.progress = Every(every), stop or StopRequest(), progress
        self.epoch, self.index, self.seconds = (
            1,
            0,
            0.0,
        )  # the epoch in progress (from 1), its next step, time spent so far
        self._bound = self._bound_test = None

    def restore(self, payload):
        """Continue from a checkpoint's payload. Raises UserError where its tensors are not this network's."""
        try:
            self._restore(payload)
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"{self.directory}/{checkpoint.NAME} was written by another version of this program "
                f"({str(error).splitlines()[0]}): continue with that version, or start anew in another directory"
            ) from error

    def _restore(self, payload):
        self.network.load_state_dict(payload["model"])
        for name, momentum in self._momenta():
            momentum.copy_(payload["momentum"][name])
        self.epoch, self.index, self.seconds = payload["epoch"], payload["index"], payload["seconds"]
        self.step.totals.copy_(payload["totals"])

    def _momenta(self):
        """(name of its parameter, momentum) for each, nothing without momentum."""
        names = [name for name, _ in self.network.named_parameters()]
        return list(zip(names, self.optimizer.momenta, strict=True)) if self.optimizer.momenta else []

    def save(self):
        """Write a checkpoint of this very moment. Raises NotFinite, and writes none, where a weight is no finite number."""
        if self.directory is None:
            return
        model = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
        if not all(tensor.isfinite().all() for tensor in model.values()):
            self._not_finite("a weight")  # a finite loss may have gradients that are not
        payload = {
            "config_hash": self.run["config_hash"],
            "run": json.dumps(self.run),
            "metrics": self.log.text,
            "epoch": self.epoch,
            "index": self.index,
            "seconds": self.seconds,
            "totals": self.step.totals.cpu(),
            "model": model,
            "momentum": {n: t.cpu() for n, t in self._momenta()},
        }
        checkpoint.save(self.directory, payload)

    def fit(self):
        """Train to the schedule's last epoch. Returns the rows of metrics.jsonl.

        Raises Stopped after a signal (everything saved) and NotFinite when the loss is no number.
        """
        rows = self.log.rows if self.log else []
        while self.epoch <= self.schedule["epochs"]:
            started, before = time.monotonic(), self.seconds
            first = self.index
            loss, top1 = self.train_epoch()
            trained = time.monotonic() - started
            self.seconds = before + trained
            tested = self.evaluate()
            if not math.isfinite(tested["test_loss"]):
                self._not_finite("the test loss")
            self.seconds = before + time.monotonic() - started
            row = {
                "epoch": self.epoch,
                "step": self.epoch * self.train_feed.steps,
                "train_loss": loss,
                "train_top1": top1,
                **tested,
                "lr": learning_rate(self.schedule, self.epoch),
                "images_per_second": round(self._images(first) / trained, 1)
                if trained and self._images(first)
                else 0.0,
                "seconds": round(self.seconds, 3),
            }
            if self.log:
                self.log.append(row)
            else:
                rows.append(row)
            if self.progress:
                self.progress.epoch(row)
            self.epoch, self.index = self.epoch + 1, 0
            self.step.totals.zero_()
            self.save()
            self._stop_if_asked(saved=True)
        return rows

    def train_epoch(self):
        """The rest of the epoch in progress. Returns mean loss and top-1 in percent over the whole epoch."""
        self.network.train()
        self.optimizer.rate.fill_(learning_rate(self.schedule, self.epoch))
        self.train_feed.start(self.epoch - 1, self.index)
        step = self._bind()
        waits = self.device.type == "cpu"  # reading a number costs nothing there
        started, before = time.monotonic(), self.seconds
        for index in range(self.index, self.train_feed.steps):
            with self._compilation() if self.compiling else contextlib.nullcontext():
                step(index)
            self.index = index + 1
            if self.compiling:
                self.warn(f"compiled in {time.monotonic() - started:.0f} s (the first step, its compilation included)")
                self.compiling = False
            if waits and self.step.bad:
                break
            if self.progress:
                self.progress.step(self.epoch, index + 1, self.train_feed.steps, self.step.totals if waits else None)
            if self.stop.requested or self.every.due((self.epoch - 1) * self.train_feed.steps + index + 1):
                self.seconds = before + time.monotonic() - started
                self._refuse_not_finite()
                self.save()
                self._stop_if_asked(saved=True)
        self._refuse_not_finite()
        loss, hits, images = self.step.totals.tolist()
        return loss / images, 100 * hits / images

    @contextlib.contextmanager
    def _compilation(self):
        """The first step with torch.compile, which may take minutes: a signal that ends it loses nothing."""
        with self.stop.impatient(), compilation_explained():
            yield

    def evaluate(self):
        """The test set once. Returns {"test_loss", "test_top1", "test_top5"}, accuracies in percent."""
        self.network.eval()
        run = self._bind_test()
        run.step.totals.zero_()
        self.test_feed.start(0)
        for index in range(self.test_feed.steps):
            run(index)
            self._stop_if_asked(saved=False)
        loss, top1, top5, images = run.step.totals.tolist()
        return {"test_loss": loss / images, "test_top1": 100 * top1 / images, "test_top5": 100 * top5 / images}

    def _bind(self):
        if self._bound is None:
            self._bound = bind(self.step, self.train_feed, self.capture, self.warn)
        return self._bound

    def _bind_test(self):
        """Captured once, on the network itself, where there are graphs; elsewhere made anew from this epoch's weights."""
        if self._bound_test:
            return self._bound_test
        if can_capture(self.test_feed, self.capture):
            step = TestStep(self.network, self.autocast, self.device)
            self._bound_test = bind(step, self.test_feed, self.capture, self.warn)
            return self._bound_test
        return Eager(TestStep(self.for_evaluation(self.network), self.autocast, self.device), self.test_feed)

    def _images(self, first):
        """Images trained on in an epoch from step `first` on."""
        return max(0, self.train_feed.images - first * self.train_feed.batches.batch_size)

    def _refuse_not_finite(self):
        if self.step.bad:
            self._not_finite("the training loss")

    def _not_finite(self, what):
        raise NotFinite(
            f"{what} stopped being a finite number in epoch {self.epoch}; the last checkpoint is from before it. "
            f"Lower schedule.learning_rate (now {self.schedule['learning_rate']}), or take precision=fp32"
        )

    def _stop_if_asked(self, saved):
        if self.stop.requested:
            if not saved:
                self.save()
            raise Stopped(f"{self.stop.requested}: saved after step {self.index} of epoch {self.epoch}")


@contextlib.contextmanager
def compilation_explained():
    """Turn what torch.compile raises where it cannot compile, a machine without a compiler for example, into a UserError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "triton")):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
        reason = next((line for line in lines if "error: " in line), lines[0] if lines else type(error).__name__)
        raise UserError(
            f"compile=true: torch.compile cannot compile here ({reason}): it needs a C++ compiler (g++, or what the "
            "environment names as CXX) and Python's header files; install them, or take compile=false"
        ) from error


@contextlib.contextmanager
def memory_explained(device):
    """Turn an exception that means that memory ran out, on the device or the host, into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.cuda.OutOfMemoryError is a RuntimeError
        if "DataLoader worker" in str(error):
            raise UserError(
                f"a loader worker died, most often because memory ran out ({str(error).splitlines()[0]}): lower data.workers, "
                "0 needs none; what was saved is intact, the same command continues"
            ) from error
        known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not known and not any(
            words in str(error) for words in ("DefaultCPUAllocator", "could not create a memory object")
        ):
            raise
        raise UserError(
            f"out of memory on device={device}: lower schedule.batch_size or schedule.test_batch_size, take model.memory=linear "
            "(CIFAR DenseNets) or precision=bf16 (where the device has it), or run fewer runs at once; what was saved is intact"
        ) from error
