"""The batches of an epoch on a device, and a step that is repeated over them, as a CUDA graph.

`HostBatches` are assembled by the CPU. `ResidentBatches` keep the data set and the epoch's plan on
a GPU and crop, mirror and normalise inside the step, which can therefore be captured whole.
"""

import functools
import hashlib
import random
import warnings

import numpy as np
import torch

from lcm.data.in_memory import normalise
from lcm.errors import UserError, one_line
from lcm.training.out_of_memory import is_out_of_memory

WARM_UPS = 3  # steps before a capture, as PyTorch's documentation of CUDA graphs asks for
IN_FLIGHT = 3  # steps by which the CPU may be ahead of a GPU; it would queue a whole epoch at once


class HostBatches:
    """Batches assembled on the CPU, in this process or by loader workers, and prepared on a device.

    Args:
        batches: of a data set (lcm.data).
        device: a torch.device.

    len() is the number of steps per epoch, `images` that of its images.
    """

    def __init__(self, batches, device):
        self.batches = batches
        self.device = device
        self.images = batches.images
        self.batch_size = batches.batch_size

    def __len__(self):
        return len(self.batches)

    def size(self, step):
        """Images in the batch of a step: the last one may be smaller."""
        return min(self.batch_size, self.images - step * self.batch_size)

    def sizes(self):
        """The sizes of an epoch's batches, the larger first."""
        return sorted({self.size(0), self.size(len(self) - 1)}, reverse=True)

    def start(self, epoch, step):
        """Begin an epoch, counted from 1, at one of its steps, counted from 0."""
        self._iterator = self.batches.iterate(epoch, step)

    def take(self, size=None):
        """The next batch: images (B, 3, H, W) float32, labels (B,) int64."""
        return self.batches.prepare(next(self._iterator), self.device)


class ResidentBatches(HostBatches):
    """The whole set as bytes on the device; a batch is a slice of the epoch's plan.

    The place in the plan is a tensor on the device, set by `start`, which a captured step moves on.
    """

    def __init__(self, batches, device):
        super().__init__(batches, device)
        self.resident = batches.resident
        self.pixels = self.resident.images.to(device)
        self.labels = self.resident.labels.to(device)
        # Allocated once, then changed in place: a captured step reads these very addresses.
        self.plan = [drawn.to(device) for drawn in self.resident.plan(1)]
        self.cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.range = torch.arange(self.batch_size, device=device)

    def start(self, epoch, step):
        for buffer, drawn in zip(self.plan, self.resident.plan(epoch), strict=True):
            buffer.copy_(drawn)
        self.cursor.fill_(step * self.batch_size)

    def take(self, size):
        """The next `size` images, (B, 3, H, W) float32 in channels-last memory; their labels."""
        # (size,), from a tensor on the device: a capture would freeze a number of Python's, and
        # each replay would take the same images.
        positions = self.cursor + self.range[:size]
        index, offsets, mirror = (drawn[positions] for drawn in self.plan)
        self.cursor += size
        crops = self.resident.crop(self.pixels, index, offsets, mirror)
        return normalise(crops, self.resident.mean, self.resident.std), self.labels[index]


def batches_on(device, batches):
    """A data set's batches on a device: resident on a GPU where the set allows it."""
    resident = device.type == "cuda" and batches.resident is not None
    return (ResidentBatches if resident else HostBatches)(batches, device)


def seed_generators(device, *key):
    """Set the generators of torch, numpy and Python that random layers may use, keyed by `key`."""
    # Hashed: the keys of successive steps give unrelated streams.
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little", signed=True)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class Repeated:
    """A step over the batches of an epoch.

    Args:
        step: called with the images and labels of a batch.
        batches: as `batches_on` returns them.
        key: what the random numbers inside a step depend on, beside the step's place.
        graphs: batch size -> torch.cuda.CUDAGraph of the step; none: operation by operation.
    """

    def __init__(self, step, batches, key, graphs=None):
        self.step = step
        self.batches = batches
        self.key = key
        self.graphs = graphs

    def epoch(self, epoch, start=0):
        """Run the steps of an epoch, counted from 1; yields after each how many are done."""
        device = self.batches.device
        # At most IN_FLIGHT steps ahead, the CPU notices a signal and measures the GPU's work.
        # blocking: it waits without spinning
        on_gpu = device.type == "cuda"
        events = [torch.cuda.Event(blocking=True) for _ in range(IN_FLIGHT if on_gpu else 0)]
        self.batches.start(epoch, start)
        for index in range(start, len(self.batches)):
            size = self.batches.size(index)
            # Outside of a graph: dropout and the like give the same bits after any continuation.
            seed_generators(device, *self.key, epoch, index)
            # A replay takes its batch itself: `take` is part of what was captured.
            if self.graphs:
                self.graphs[size].replay()
            else:
                self.step(*self.batches.take(size))
            if events:
                # Last recorded IN_FLIGHT steps ago: waiting for it keeps the CPU that close.
                event = events[index % IN_FLIGHT]
                event.synchronize()  # returns at once where it was never recorded
                event.record()
                # The last steps of an epoch belong to its time, too.
                if index + 1 == len(self.batches):
                    event.synchronize()
            yield index + 1


def with_graph(step, batches, tensors, capture, mode, key, warn=print):
    """The step repeated over its batches: captured where `capture` is true and they are resident.

    Before an epoch begins. Changes none of the tensors, also where it fails. Host batches are those
    of large images, whose steps keep a GPU busy without a graph.

    Args:
        step: called with the images and labels of a batch.
        batches: as `batches_on` returns them.
        tensors: a function: the list of every tensor that a step changes.
        mode: called before a capture, which records the network's mode: network.train or .eval.
        key: of the random numbers inside a step, beside (epoch, step).
        warn: called with one line where a graph would not do what the step does, which then runs
            operation by operation.

    Raises:
        UserError: the capture failed. What the step itself raises: out of memory, an error of
            torch.compile.
    """
    if not capture or not isinstance(batches, ResidentBatches):
        return Repeated(step, batches, key)
    kept = [tensor.clone() for tensor in tensors()]
    before = torch.cuda.current_stream(batches.device)
    stream = side_stream(batches.device)
    mode()
    # A capture runs on a side stream, after a few steps there that choose kernels and allocate. All
    # that these steps change is put back, whatever happens.
    graphs = {}
    try:
        warm_up(step, batches, stream)
        if reason := obstacle(step, batches, stream, tensors):
            warn(
                f"no CUDA graph ({reason}): every step runs operation by operation, several times "
                "slower"
            )
        else:
            graphs = captured(step, batches, stream)
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
        # After an error nobody has waited for the side stream, whose steps could still write.
        torch.cuda.synchronize(batches.device)
        with torch.no_grad():
            for tensor, value in zip(tensors(), kept, strict=True):
                tensor.copy_(value)
    return Repeated(step, batches, key, graphs)


# The stream of a device on which steps are captured. One for all runs of a process: cuBLAS keeps a
# workspace for each stream that it has ever seen.
side_stream = functools.cache(lambda device: torch.cuda.Stream(device))


def warm_up(step, batches, stream):
    """Take a few steps of every batch size on a stream."""
    # Streams do not wait for each other by themselves: the side stream must find all tensors
    # ready, and what comes after must find its steps done.
    stream.wait_stream(torch.cuda.current_stream(batches.device))
    with torch.cuda.stream(stream):
        for size in batches.sizes() * WARM_UPS:
            # From position 0 each time: a cursor that ran on would soon leave the plan.
            batches.start(1, step=0)
            step(*batches.take(size))
    torch.cuda.current_stream(batches.device).wait_stream(stream)


def obstacle(step, batches, stream, tensors):
    """Why a graph would not do what the step does, as far as one more step shows it; or None.

    A replay runs no Python: what the CPU decides, draws or stores is what it was in the capture.
    """

    def drawn():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    numbers, held = drawn(), tensors()
    with torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its debug mode a prototype
        batches.start(1, step=0)
        # Found here and not in a capture: after one that failed, the allocator of torch before
        # 2.12 refuses to empty its cache, and later runs of this process with it.
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*batches.take(batches.size(0)))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return one_line(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if numbers != drawn():
        return "a step draws random numbers on the CPU"
    if not all(old is new for old, new in zip(held, tensors(), strict=True)):
        return "a step replaces a buffer of the network; write to it in place"
    return None


def captured(step, batches, stream):
    """{batch size: a graph of the step}. Raises UserError where it cannot be captured."""
    # One pool, and the larger size first, so that the other graph can use the same memory: they
    # never replay at once, and nothing in the pool is needed after its step.
    pool = torch.cuda.graph_pool_handle()
    graphs = {}
    try:
        for size in batches.sizes():
            batches.start(1, step=0)
            graphs[size] = torch.cuda.CUDAGraph()
            # the stream is named: torch's own default for captures may be another device's
            with torch.cuda.graph(graphs[size], pool=pool, stream=stream):
                step(*batches.take(size))
    except RuntimeError as error:
        # Of an error inside a capture torch raises another, about the capture's end.
        first = error
        while first.__context__:
            first = first.__context__
        if is_out_of_memory(first):
            raise first from None
        raise UserError(
            f"a step cannot be captured as a CUDA graph ({one_line(first)}): set capture=false"
        ) from error
    return graphs
