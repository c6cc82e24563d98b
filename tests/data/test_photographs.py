"""Large images, mini-ImageNet above all: torchvision's views of them, and the cache of pixels."""

import errno
import itertools
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import SIZES, scene
from torchvision.transforms import RandomResizedCrop, v2

from lcm.config.compose import load as load_config
from lcm.data import build_data, image_cache
from lcm.data.image_cache import open_cache
from lcm.data.mini_imagenet import WNIDS
from lcm.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of 5 + 2 images in all sizes, one of them grey, one CMYK, one PNG."""
    root = tmp_path_factory.mktemp("mini") / "mini-imagenet"
    for (c, wnid), i in itertools.product(enumerate(WNIDS[:3]), range(7)):
        image = scene(100 * c + i, *SIZES[(3 * c + i) % len(SIZES)])
        if i == 5 and c < 2:
            image = image.convert(("L", "CMYK")[c])
        folder = root / ("train" if i < 5 else "test") / wnid
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{wnid}{i:08}.{'png' if c == 2 else 'jpg'}")
    return root


def load(root, **options):
    """The data set of three classes, otherwise as configs/data has it."""
    given = {"num_classes": 3, "root": root, "workers": 0}
    return build_data(load_config("data", "mini_imagenet") | given | options)


@pytest.fixture
def cached(root, tmp_path):
    return load(root, cache_dir=tmp_path / "cache")


def level(values):
    """Normalised (B, 3, H, W) -> grey levels 0 to 255, (B, H, W, 3)."""
    scale, shift = (torch.tensor(v)[:, None, None] for v in (STD, MEAN))
    return ((values * scale + shift) * 255).permute(0, 2, 3, 1).numpy()


def test_test_images_are_torchvisions(root, cached):
    view = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    paths = sorted((root / "test").glob("*/*"))
    images = [np.asarray(view(Image.open(path).convert("RGB"))) for path in paths]
    batches = cached.test(6)
    shown, labels = batches.prepare(next(batches.iterate(1)), "cpu")
    assert shown.shape == (6, 3, 224, 224) and labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert shown.is_contiguous(memory_format=torch.channels_last)
    # torch rounds some bytes otherwise than Pillow
    assert abs(level(shown) - np.stack(images)).max() < 1.01


@pytest.mark.parametrize("size", SIZES)
def test_training_images_are_torchvisions_regions_of_the_right_image(root, tmp_path, size):
    """Pillow's own resampling of the region that the image's seed draws."""
    copy = tmp_path / "copy"
    for half, wnid in itertools.product(("train", "test"), WNIDS[:3]):
        (copy / half / wnid).mkdir(parents=True)
        scene(WNIDS.index(wnid), *size).save(copy / half / wnid / "0.png")
    mirror = size != SIZES[0]
    batches = load(copy, cache_size=None, mirror=mirror).train(3, seed=4)
    images, labels = next(batches.iterate(6))
    index, seeds = batches.source.plan(6)
    assert torch.equal(index, labels) and sorted(labels.tolist()) == [0, 1, 2]
    for shown, i, seed in zip(images.numpy(), index.tolist(), seeds.tolist(), strict=True):
        image = scene(i, *size)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            area, shape = (0.08, 1.0), (3 / 4, 4 / 3)
            top, left, height, width = RandomResizedCrop.get_params(image, area, shape)
            flip = torch.rand(1) < 0.5 and mirror
        cut = image.crop((left, top, left + width, top + height))
        expected = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR))
        expected = expected[:, ::-1] if flip else expected
        assert abs(shown.astype(int) - expected).max() <= 1


def bytes_of(batches, epoch, start=0):
    return [[part.numpy().tobytes() for part in raw] for raw in batches.iterate(epoch, start)]


def test_neither_workers_nor_the_start_nor_the_past_change_a_byte(root, tmp_path):
    def batches(workers):
        given = {"cache_dir": tmp_path, "workers": workers, "image_size": 72}
        return load(root, **given).train(4, seed=7)

    state = torch.get_rng_state()
    whole = bytes_of(batches(0), 2)
    later = batches(2)
    assert bytes_of(later, 2) == whole and bytes_of(later, 2, start=3) == whole[3:]
    assert torch.equal(state, torch.get_rng_state())
    assert bytes_of(later, 3) != whole


def test_a_process_ends_although_an_error_leaves_workers_behind():
    """The kept generator stands for the frames of a traceback."""
    program = """import torch
from lcm.data.workers import in_workers
kept = in_workers(lambda step: torch.zeros(1), range(100), 2)
next(kept)
raise SystemExit(7)"""
    assert subprocess.run([sys.executable, "-c", program], timeout=200).returncode == 7


def test_an_epoch_shows_every_training_image_once_in_a_new_order(cached):
    plans = [cached.train(4, seed=0).source.plan(e) for e in (1, 2, 3)]
    orders = [order.tolist() for order, _ in plans]
    assert torch.cat([seeds for _, seeds in plans]).unique().numel() == 45
    assert all(sorted(order) == list(range(15)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert cached.train(4, seed=1).source.plan(1)[0].tolist() != orders[0]
    assert cached.train(7, seed=0).images == 14, "a last batch of one image is left out"
    assert [raw[-1].tolist() for raw in cached.test(5).iterate(1)] == [[0, 0, 1, 1, 2], [2]]


def test_a_part_of_the_set_and_small_images_are_noted(root, cached, tmp_path):
    (note,) = cached.notes
    assert note.startswith("not the whole of mini_imagenet: 3 classes, 15 training and 6 test ")
    assert load(root, cache_dir=tmp_path / "cache", complete=[15, 6]).notes == []
    large = {"image_size": 640, "cache_size": None, "complete": [15, 6]}
    (note,) = load(root, cache_dir=tmp_path / "cache", **large).notes
    assert note.startswith("low resolution: images of ") and "sees 640x640" in note
    shown = [int(side) for side in re.findall(r"\d+", note)[:2]]  # of the image in the middle
    assert min(shown) == sorted(min(Image.open(path).size) for path in root.rglob("n*.*"))[10]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_classes": 2}, "holds 3 classes and mini_imagenet has 2"),
        ({"cache_size": 240}, "data.cache_size=240"),  # too small for the test
        ({"cache_dir": __file__}, "data.cache_dir=FOLDER"),
    ],
)
def test_bad_options_are_named(root, options, words):
    with pytest.raises(UserError, match=words):
        load(root, **options)


@pytest.mark.parametrize("place", [".", "cache"])
def test_a_cache_among_the_images_is_refused(root, place):
    """The next run would take it for a class, or for what is not used."""
    with pytest.raises(UserError, match="is among the images of"):
        load(root, cache_dir=root / place)


STORED = [(47, 63), (63, 47), (33, 125), (32, 32), (20, 31), (124, 41), (13, 112)]


@pytest.fixture
def files(tmp_path):
    """Seven images, four of them larger than a short side of 32."""
    paths = {f"train/{i}.png": tmp_path / f"{i}.png" for i in range(len(STORED))}
    for i, (path, size) in enumerate(zip(paths.values(), STORED, strict=True)):
        scene(i, *size).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """How many files were decoded."""
    seen, really = [], image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *given: seen.append(1) or really(*given))
    return seen


def check(cache, files, short_side):
    """It holds all files as torchvision resizes them, but never larger than they are."""
    assert len(cache.sizes) == len(files)
    for i, image in enumerate(map(Image.open, files.values())):
        large = short_side and min(image.size) > short_side
        expected = v2.Resize(short_side)(image) if large else image
        assert np.array_equal(cache.image(i), np.asarray(expected))


@pytest.mark.parametrize("short_side", [32, None])
def test_images_are_stored_as_torchvision_resizes_them_but_never_larger(
    files, tmp_path, short_side
):
    check(open_cache(files, tmp_path / "cache", short_side), files, short_side)


def test_a_complete_cache_is_opened_without_decoding_or_reading_its_pixels(
    files, tmp_path, decoded
):
    """A cache has up to 16 GB: a start checks the index and the size alone."""
    first = open_cache(files, tmp_path / "cache", 32)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(bytes(pixels.stat().st_size))
    again = open_cache(files, tmp_path / "cache", 32)
    assert again.fingerprint == first.fingerprint and len(decoded) == 7
    assert not any(again.image(i).any() for i in range(7))
    larger = open_cache(files, tmp_path / "cache", 40)
    assert len(decoded) == 14 and larger.fingerprint != first.fingerprint


@pytest.mark.parametrize("ending", [".pixels", ".json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: b'{"sizes": [[1, 2]]}',
        lambda data: None,
    ],
)
def test_a_cut_or_missing_file_is_found(files, tmp_path, ending, damage):
    """Without its index a process was killed, whatever the pixel file or a draft holds."""
    open_cache(files, tmp_path / "cache", 32)
    (path,) = (tmp_path / "cache").glob(f"*{ending}")
    whole = path.read_bytes()
    damaged = damage(whole)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    check(open_cache(files, tmp_path / "cache", 32), files, 32)
    assert path.read_bytes() == whole


def test_of_several_processes_one_makes_the_cache(files, tmp_path, decoded, monkeypatch, capsys):
    slow = image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *given: time.sleep(0.2) or slow(*given))
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: open_cache(files, tmp_path / "cache", 32), range(4))
        assert len({cache.fingerprint for cache in made}) == 1 and len(decoded) == 7
    assert "another process is making the image cache" in capsys.readouterr().err


def test_nothing_is_left_where_it_cannot_be_made(files, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on dev"):
        patch.setattr("os.fsync", Mock(side_effect=full))
        open_cache(files, tmp_path / "cache", 32)
    path = files["train/5.png"]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="1 image cannot be read"):
        open_cache(files, tmp_path / "cache", 32)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}
