"""One training step and one evaluation step, eager or captured whole in a CUDA graph.

A step takes its batch from a feed. `HostFeed` assembles batches on the CPU; `ResidentFeed` holds the data set and the epoch's
plan on the device and does crop, mirror and normalisation inside the step. Learning rate and metrics are device tensors: on a
GPU nothing waits for the device but once an epoch. The same code runs on a CPU, where nothing is captured.
"""

import torch
import torch.nn.functional as F

from lcm.data.batches import normalise


class HostFeed:
    """Batches assembled on the CPU, in this process or by loader workers, and sent to the device."""

    def __init__(self, batches, device):
        self.batches, self.device = batches, device
        self.steps, self.images = len(batches), batches.images

    def start(self, epoch, step=0):
        self._iterator = self.batches.iterate(epoch, step)

    def take(self, size=None):
        """The next batch: images (B, 3, H, W) float32, labels (B,) int64."""
        return self.batches.prepare(next(self._iterator), self.device)


class ResidentFeed:
    """The whole set as bytes on the device; a batch is an index away, and the place in the epoch is a device tensor."""

    def __init__(self, batches, device):
        self.batches, self.device = batches, device
        self.steps, self.images, self.batch_size = len(batches), batches.images, batches.batch_size
        self.resident = batches.resident.to(device)
        self.plan = [drawn.to(device) for drawn in self.resident.plan(0)]
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.range = torch.arange(self.batch_size, device=device)

    def start(self, epoch, step=0):
        for buffer, drawn in zip(self.plan, self.resident.plan(epoch), strict=True):
            buffer.copy_(drawn)
        self.cursor.fill_(step * self.batch_size)

    def size(self, step):
        """Images in the batch of a step: the last one may be smaller."""
        return min(self.batch_size, self.images - step * self.batch_size)

    def take(self, size):
        """The next `size` images: (B, 3, H, W) float32 in channels-last memory, and their labels (B,) int64."""
        place = self.cursor + self.range[:size]
        index, offsets, mirror = (drawn[place] for drawn in self.plan)
        self.cursor += size
        crops = self.resident.crop(self.resident.images, index, offsets, mirror)
        return normalise(crops, self.resident.scale, self.resident.shift), self.resident.labels[index]


def feed(batches, device):
    """The feed for a device: resident on a GPU where the set allows it, assembled on the CPU otherwise."""
    resident = device.type == "cuda" and getattr(batches, "resident", None) is not None
    return (ResidentFeed if resident else HostFeed)(batches, device)


def widened(logits):
    """Logits in float32 at least, in which the loss is computed."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class TrainStep:
    """Forward, loss, backward, SGD; adds loss, hits and images to `totals` (float64, on the device).

    `bad` rises to 1 with the first loss that is not finite and from then on keeps the optimiser from touching the weights
    (its `found_inf`), so that a GPU need not be asked each step.
    """

    def __init__(self, network, optimizer, autocast, device):
        self.network, self.optimizer, self.autocast = network, optimizer, autocast
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self.bad = torch.zeros(1, device=device)
        optimizer.found_inf = self.bad

    def __call__(self, images, labels):
        self.optimizer.zero_grad()
        with self.autocast:
            logits = self.network(images)
        loss = F.cross_entropy(widened(logits), labels)
        self.bad.copy_(torch.maximum(self.bad, (~loss.isfinite()).float()))
        loss.backward()
        self.optimizer.step()
        hits = (logits.argmax(1) == labels).sum()
        self.totals[0] += loss.detach().double() * len(labels)
        self.totals[1] += hits
        self.totals[2] += len(labels)

    def state(self):
        """Every tensor that a step changes."""
        return [*self.network.state_dict().values(), *self.optimizer.momenta, self.totals, self.bad]


class TestStep:
    """Forward in evaluation mode; adds loss, top-1 hits, top-5 hits and images to `totals` (float64, on the device)."""

    __test__ = False  # not a pytest class

    def __init__(self, network, autocast, device):
        self.network, self.autocast = network, autocast
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def __call__(self, images, labels):
        with self.autocast:
            logits = self.network(images)
        logits = widened(logits)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.totals[0] += F.cross_entropy(logits, labels, reduction="sum").double()
        self.totals[1] += top5[:, 0].sum()
        self.totals[2] += top5.sum()
        self.totals[3] += len(labels)

    def state(self):
        return [self.totals]


class Captured:
    """A step together with its feed as CUDA graphs, one for each batch size; each call replays one.

    Capturing runs the step a few times and then puts back every tensor that it changed.
    """

    def __init__(self, step, feed):
        self.step, self.feed = step, feed
        self.graphs, self.pool = {}, None

    def __call__(self, index):
        size = self.feed.size(index)
        if size not in self.graphs:
            self._capture(size)
        self.graphs[size].replay()

    def _capture(self, size):
        changed = [*self.step.state(), self.feed.cursor]
        kept = [tensor.clone() for tensor in changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.feed.cursor.zero_()  # there may be no three batches left in this epoch
                self.step(*self.feed.take(size))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.step(*self.feed.take(size))
        self.pool = self.pool or graph.pool()
        self.graphs[size] = graph
        with torch.no_grad():
            for tensor, value in zip(changed, kept, strict=True):
                tensor.copy_(value)


class Eager:
    """A step together with its feed, run operation by operation."""

    def __init__(self, step, feed):
        self.step, self.feed = step, feed
        self._size = getattr(feed, "size", lambda index: None)

    def __call__(self, index):
        self.step(*self.feed.take(self._size(index)))


def can_capture(feed, capture):
    """Whether a step from this feed can be captured at all."""
    return capture and feed.device.type == "cuda" and isinstance(feed, ResidentFeed)


def bind(step, feed, capture, warn=print):
    """The step bound to its feed: captured on a GPU where `capture` is true and the feed is resident, eager otherwise.

    Where capturing fails, one line says why, and the step goes on eagerly.
    """
    if not can_capture(feed, capture):
        return Eager(step, feed)
    captured = Captured(step, feed)
    kept = [tensor.clone() for tensor in [*step.state(), feed.cursor]]
    try:
        captured._capture(feed.size(0))
    except RuntimeError as error:
        warn(
            f"no CUDA graph ({str(error).splitlines()[0]}): every step runs operation by operation, several times slower"
        )
        torch.cuda.synchronize()
        with torch.no_grad():
            for tensor, value in zip([*step.state(), feed.cursor], kept, strict=True):
                tensor.copy_(value)
        return Eager(step, feed)
    return captured
