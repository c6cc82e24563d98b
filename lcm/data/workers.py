"""Batches from worker processes, which no signal and no error leaves behind."""

import atexit
import functools
import multiprocessing
import signal

import torch
from torch.utils.data import DataLoader

from lcm.errors import SIGNALS

_RUNNING = set()  # a loader that is garbage cannot end its workers: it waits for them in vain


def in_workers(batch, steps, workers: int):
    """batch(step) for each of `steps`, in order, computed in worker processes.

    A batch is a tuple of tensors. The global random state does not change.
    """
    loader = DataLoader(
        steps,
        batch_size=None,
        collate_fn=batch,
        num_workers=workers,
        generator=torch.Generator(),  # a loader draws a seed: not from the global generator
    )
    end_workers_at_exit()
    # A cluster signals the whole process group. Workers inherit this mask: they go on, so that this
    # process can finish its step.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        running = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _RUNNING.add(running)
    try:
        yield from running
    finally:
        _RUNNING.discard(running)
        running._shutdown_workers()  # at once, also where a traceback still holds the loader


@functools.cache
def end_workers_at_exit():
    """See to it that this process exits although an error has left workers behind.

    multiprocessing would send them SIGTERM, which they do not get, and wait for ever.
    """

    def kill():
        if workers := [child for child in multiprocessing.active_children() if child.daemon]:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader's handler raises errors
            for worker in workers:
                worker.kill()

    atexit.register(kill)
