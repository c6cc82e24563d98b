"""The batches of a step, and whole steps as CUDA graphs.

`HostFeed` has batches that the CPU assembles or, for photographs, that the device crops by ordinary operations. `ResidentFeed`
keeps the data set and the epoch's plan on the device and does crop, mirror and normalisation inside the step. On a CPU nothing
is captured; the rest is the same code.
"""

import torch

from lcm.data.in_memory import normalise
from lcm.training.memory import is_out_of_memory

WARM_UPS = 3  # steps before a capture, as PyTorch's documentation of CUDA graphs asks for
IN_FLIGHT = 3  # steps by which the CPU may be ahead of a GPU


class Feed:
    """The batches of epochs, from `batches` (lcm.data) to a device."""

    def __init__(self, batches, device):
        self.batches, self.device = batches, device
        self.steps, self.images, self.batch_size = len(batches), batches.images, batches.batch_size

    def size(self, step):
        """Images in the batch of a step: the last one may be smaller."""
        return min(self.batch_size, self.images - step * self.batch_size)

    def sizes(self):
        """The sizes of an epoch's batches, the larger first."""
        return sorted({self.size(0), self.size(self.steps - 1)}, reverse=True)

    def load(self, size):
        """What has to happen before each replay, outside the graph."""

    def state(self):
        """The tensors that `take` changes."""
        return []


class HostFeed(Feed):
    """Batches assembled on the CPU, in this process or by loader workers, and prepared on the device."""

    def start(self, epoch, step=0):
        """Begin epoch `epoch` (from 0) at its step `step`."""
        self._iterator = self.batches.iterate(epoch, step)

    def take(self, size=None):
        """The next batch: images (B, 3, H, W) float32, labels (B,) int64."""
        return self.batches.prepare(next(self._iterator), self.device)


class BufferFeed(HostFeed):
    """A HostFeed whose batches are copied into two buffers, because a graph reads the same addresses at each replay."""

    def __init__(self, batches, device):
        super().__init__(batches, device)
        self.buffers = [part.clone() for part in batches.prepare(batches.epoch(0)[0], device)]

    def load(self, size):
        """Copy the next batch into the buffers."""
        for buffer, part in zip(self.buffers, super().take(), strict=True):
            buffer[:size].copy_(part)

    def take(self, size):
        """The batch that was loaded last."""
        return tuple(buffer[:size] for buffer in self.buffers)


class ResidentFeed(Feed):
    """The whole set as bytes on the device; a batch is a slice of the epoch's plan, whose cursor is a device tensor."""

    def __init__(self, batches, device):
        super().__init__(batches, device)
        self.resident = batches.resident.to(device)
        self.plan = [drawn.to(device) for drawn in self.resident.plan(0)]
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.range = torch.arange(self.batch_size, device=device)

    def start(self, epoch, step=0):
        for buffer, drawn in zip(self.plan, self.resident.plan(epoch), strict=True):
            buffer.copy_(drawn)
        self.cursor.fill_(step * self.batch_size)

    def take(self, size):
        """The next `size` images: (B, 3, H, W) float32 in channels-last memory, and their labels (B,) int64."""
        positions = self.cursor + self.range[:size]
        index, offsets, mirror = (drawn[positions] for drawn in self.plan)
        self.cursor += size
        crops = self.resident.crop(self.resident.images, index, offsets, mirror)
        return normalise(crops, self.resident.scale, self.resident.shift), self.resident.labels[
            index
        ]

    def state(self):
        return [self.cursor]


def feed(batches, device):
    """The feed for a device: resident on a GPU where the set allows it, assembled on the CPU otherwise."""
    resident = device.type == "cuda" and getattr(batches, "resident", None) is not None
    return (ResidentFeed if resident else HostFeed)(batches, device)


class Pace:
    """Keeps the CPU at most `IN_FLIGHT` steps ahead of a GPU; otherwise it would queue a whole epoch at once.

    A signal is then noticed within a few steps, and measured times are those of the GPU's work. On a CPU it does nothing.
    """

    def __init__(self, device):
        self.device, self.steps = device, 0
        # an event for each of the last steps; blocking: the CPU waits without spinning
        self.events = (
            [torch.cuda.Event(blocking=True) for _ in range(IN_FLIGHT)]
            if device.type == "cuda"
            else []
        )

    def step(self):
        """Call after each step: waits for the step `IN_FLIGHT` steps back."""
        if self.events:
            event = self.events[self.steps % IN_FLIGHT]
            event.synchronize()  # returns at once where it was never recorded
            event.record(torch.cuda.current_stream(self.device))
            self.steps += 1


class Eager:
    """A step together with its feed, run operation by operation."""

    def __init__(self, step, feed):
        self.step, self.feed, self.pace = step, feed, Pace(feed.device)

    def __call__(self, index):
        self.step(*self.feed.take(self.feed.size(index)))
        self.pace.step()


class Captured:
    """A step together with its feed as CUDA graphs, one for each batch size; each call replays one.

    Args:
        feed: a ResidentFeed or a BufferFeed.
        graphs: number of images -> torch.cuda.CUDAGraph, as `capture` makes them.
    """

    def __init__(self, step, feed, graphs):
        self.step, self.feed, self.graphs, self.pace = step, feed, graphs, Pace(feed.device)

    def __call__(self, index):
        size = self.feed.size(index)
        self.feed.load(size)
        self.graphs[size].replay()
        self.pace.step()


def bind(step, feed, capture, warn=print):
    """The step bound to its feed: captured for every batch size on a GPU where `capture` is true, eager otherwise.

    Changes no weight, statistic, momentum or total and no position in the epoch, also where it fails.

    Args:
        warn: called with one line where capturing alone fails; the step then runs eagerly.

    Raises:
        What the step itself raises: out of memory, an error of torch.compile.
    """
    if not capture or feed.device.type != "cuda":
        return Eager(step, feed)
    buffered = BufferFeed(feed.batches, feed.device) if isinstance(feed, HostFeed) else feed
    changed = [*step.state(), *buffered.state()]
    kept = [tensor.clone() for tensor in changed]
    before, graphs, reason = torch.cuda.current_stream(feed.device), {}, None
    try:
        stream = warm_up(step, buffered)
        try:
            capture_all(step, buffered, stream, graphs)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
        torch.cuda.synchronize(feed.device)
        with torch.no_grad():
            for tensor, value in zip(changed, kept, strict=True):
                tensor.copy_(value)
    if reason is None:
        return Captured(step, buffered, graphs)
    warn(f"no CUDA graph ({reason}): every step runs operation by operation, several times slower")
    graphs.clear()
    step.network.zero_grad()  # gradients are in the graphs' memory
    torch.cuda.empty_cache()
    return Eager(step, feed)


def warm_up(step, feed):
    """A few steps of every batch size on a new stream, which is returned: kernels are chosen, buffers allocated."""
    stream = torch.cuda.Stream(feed.device)
    stream.wait_stream(torch.cuda.current_stream(feed.device))
    with torch.cuda.stream(stream):
        for size in feed.sizes() * WARM_UPS:
            rewind(feed)
            step(*feed.take(size))
    torch.cuda.current_stream(feed.device).wait_stream(stream)
    return stream


def capture_all(step, feed, stream, graphs):
    """Capture the step for every batch size, on `stream` (the default one may be another device's), into `graphs`."""
    pool = torch.cuda.graph_pool_handle()
    for size in feed.sizes():
        rewind(feed)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            step(*feed.take(size))
        graphs[size] = graph


def rewind(feed):
    """Put a feed at the start of its epoch, after which enough images are left."""
    for cursor in feed.state():
        cursor.zero_()
