"""Batches: the windows that are cut, what random numbers depend on, that nothing changes a byte."""

import gc
import itertools
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from plain import MEAN, STD

from lcm.data import workers
from lcm.data.in_memory import Batches, Resident
from lcm.data.workers import in_workers
from lcm.errors import UserError


def resident(n=150, size=32, pad=4, mirror=True, seed=0):
    values = np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Resident(values, np.arange(n) % 10, MEAN, STD, pad=pad, mirror=mirror, seed=seed)


def window(image, pad, down, right, mirror):
    """The crop by its definition: pad, cut, mirror."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    cut = padded[down : down + height, right : right + width]
    return cut[:, ::-1] if mirror else cut


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_both_paths_cut_every_window_of_every_image(pad):
    """The windows by their definition, by `gather` and by `crop`."""
    data, places = resident(n=2, pad=pad), range(2 * pad + 1)
    every = list(itertools.product(range(2), places, places, (False, True)))
    index, *offsets, mirror = torch.tensor(every).T
    rows = index, torch.stack(offsets, 1), mirror.bool()
    expected = np.stack([window(data.images[i].numpy(), pad, *place) for i, *place in every])
    assert torch.equal(data.gather(*rows), torch.from_numpy(expected))
    assert torch.equal(data.crop(data.images, *rows), torch.from_numpy(expected))


def test_all_162_windows_come_equally_often():
    """Chi-square over the contents of the batches, not over the random numbers."""
    from scipy.stats import chisquare

    probe = np.arange(1, 12 * 12 * 3 + 1).astype(np.uint8).reshape(12, 12, 3)
    windows = {
        window(probe, 4, *at).tobytes()
        for at in itertools.product(range(9), range(9), (False, True))
    }
    images = np.tile(probe, (162 * 100, 1, 1, 1))
    data = Resident(images, np.zeros(len(images), np.int64), MEAN, STD, pad=4, mirror=True, seed=5)
    counts = Counter(
        image.tobytes() for batch, _ in Batches(data, 90).iterate(1) for image in batch.numpy()
    )
    assert counts.keys() == windows and len(windows) == 162 and counts.total() == len(images)
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_an_epoch_shows_every_image_once_normalised_after_padding():
    batches = Batches(resident(), 40)
    raws = list(batches.iterate(2))
    order, _, _ = plan = batches.resident.plan(2)
    assert sorted(order.tolist()) == list(range(150)) and order.tolist() != list(range(150))
    bytes_, labels = (torch.cat(part) for part in zip(*raws, strict=True))
    assert torch.equal(labels, batches.resident.labels[order])
    assert torch.equal(bytes_, batches.resident.gather(*plan))
    images, labels = batches.prepare(raws[0], "cpu")
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    expected = (raws[0][0].permute(0, 3, 1, 2).double() / 255 - mean) / std
    assert (images - expected).abs().max() < 1e-6
    assert (raws[0][0] == 0).all(-1).any()  # padding: -mean / std, not 0
    assert torch.equal(labels, raws[0][1]) and labels.dtype == torch.int64


def test_epochs_are_functions_of_seed_and_epoch_alone():
    def draws(seed, epoch):
        return [drawn.tolist() for drawn in resident(seed=seed).plan(epoch)]

    order, offsets, mirror = resident(n=9).plan(1)  # those of recorded runs
    assert order.tolist() == [6, 8, 1, 2, 3, 7, 5, 4, 0]
    windows = [[7, 1], [2, 7], [8, 3], [3, 2], [3, 7], [7, 5], [8, 7], [1, 2], [5, 6]]
    assert offsets.tolist() == windows and mirror.int().tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0]
    once = resident(seed=7)
    once.plan(2)
    assert [drawn.tolist() for drawn in once.plan(3)] == draws(7, 3)
    several = [draws(seed, epoch) for seed in range(3) for epoch in range(3)]
    for part in zip(*several, strict=True):  # orders, windows, mirrors; (0, 1) and (1, 0) differ
        assert len({str(p) for p in part}) == 9


def test_a_switched_off_augmentation_leaves_the_other_draws():
    order, offsets, mirror = resident().plan(1)
    no_mirror, no_crop = resident(mirror=False).plan(1), resident(pad=0).plan(1)
    assert torch.equal(order, no_mirror[0]) and torch.equal(order, no_crop[0])
    assert torch.equal(offsets, no_mirror[1]) and not no_mirror[2].any()
    assert torch.equal(mirror, no_crop[2]) and not no_crop[1].any()


@pytest.mark.parametrize(
    ("n", "batch_size", "steps", "images"),
    [(65, 64, 1, 64), (66, 64, 2, 66), (64, 64, 1, 64), (5, 8, 1, 5)],
)
def test_training_drops_a_last_batch_of_one_image(n, batch_size, steps, images):
    batches = Batches(resident(n=n), batch_size)
    assert (len(batches), batches.images) == (steps, images)
    assert sum(len(labels) for _, labels in batches.iterate(1)) == images
    test = Batches(resident(n=n, pad=0, seed=None), batch_size)
    seen = torch.cat([raw for raw, _ in test.iterate(1)])
    assert test.images == n and torch.equal(seen, test.resident.images)


def test_workers_serve_any_thread():
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(list, in_workers(torch.tensor, range(9), 2)).result()
    assert [value.item() for value in found] == [*range(9)]


def test_a_worker_that_hangs_is_named(monkeypatch):
    """As one does whose batch found no room in /dev/shm."""
    monkeypatch.setattr(workers, "DataLoader", partial(hurried, workers.DataLoader))
    with pytest.raises(UserError, match="hangs, most often because memory or /dev/shm ran out"):
        list(in_workers(time.sleep, [3], 1))


def hurried(loader, *args, **keys):
    return loader(*args, **keys | {"timeout": 1})


def fails(error, step):
    """A batch; the sixth one raises `error`."""
    if step == 5 and error:
        raise error
    return torch.zeros(1_000_000)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a broken image"), None])
def test_workers_end_at_once_after_an_error(error):
    """Also where a cycle of garbage holds the loader: as a traceback and its frame do."""

    def use():
        running = in_workers(partial(fails, error), range(50), 2)
        try:
            for item in running:
                if error is None:
                    raise ZeroDivisionError(item)
        except (ValueError, OSError, ZeroDivisionError) as caught:
            kept = [caught, running]
            kept.append(kept)  # garbage that only the collector finds

    use()
    before = time.monotonic()
    gc.collect()
    assert time.monotonic() - before < 20 and not multiprocessing.active_children()
