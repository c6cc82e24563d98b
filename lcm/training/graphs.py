"""Where a step's batches come from, and whole steps as CUDA graphs.

`HostFeed` assembles batches on the CPU; `ResidentFeed` holds the data set and the epoch's plan on the device and does crop,
mirror and normalisation inside the step. The same code runs on a CPU, where nothing is captured.
"""

import torch

from lcm.data.in_memory import normalise


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
