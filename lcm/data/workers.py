"""Batches from worker processes, which no signal and no error leaves behind."""

import atexit
import contextlib
import multiprocessing
import signal
from multiprocessing.connection import wait

import torch
from torch.utils.data import DataLoader

from lcm.errors import SIGNALS, UserError, one_line

_RUNNING = set()  # a loader that is garbage cannot end its workers: it waits for them in vain


def in_workers(batch, steps, workers: int):
    """batch(step) for each of `steps`, in order, computed in worker processes.

    A batch is a tuple of tensors. The global random state does not change.
    Raises UserError where a worker was killed, or gives nothing for ten minutes.
    """
    # Without a batch size the loader hands each item of its data set, here a step, to
    # collate_fn, in a worker, and returns the results in the order of the items.
    loader = DataLoader(
        steps,
        batch_size=None,
        collate_fn=batch,
        num_workers=workers,
        prefetch_factor=1,  # a container has 64 MB of /dev/shm, a batch of photographs 10
        timeout=600,  # where it is full, a worker loses its batch and lives on
        generator=torch.Generator(),  # a loader draws a seed: not from the global generator
    )
    # A cluster signals the whole process group. Workers inherit this mask: they go on, so that this
    # process can finish its step.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        running = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # The loader's own handler would raise in the middle of anything when a worker dies. Without it
    # the death is an error where the next batch is awaited.
    with contextlib.suppress(ValueError):  # outside of the main thread there is no handler
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _RUNNING.add(running)
    try:
        yield from running
    except (RuntimeError, OSError, EOFError) as error:
        # The loader reports a lost worker as a RuntimeError, which `batch` may raise too: the
        # sentinel of a process that has ended tells them apart.
        dead = wait([worker.sentinel for worker in running._workers], timeout=1)
        if not dead and "timed out" not in str(error):
            raise  # an error of `batch`
        raise UserError(
            f"a loader worker died or hangs, most often because memory or /dev/shm ran out "
            f"({one_line(error)}): lower data.workers (0 starts none), or give a container more "
            "(docker run --shm-size=1g); what was saved is intact, the same command continues"
        ) from error
    finally:
        _RUNNING.discard(running)
        running._shutdown_workers()  # at once, also where a traceback still holds the loader


@atexit.register
def _kill_workers():
    """Let this process exit although an error has left workers behind: multiprocessing would send
    them SIGTERM, which they do not get, and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
