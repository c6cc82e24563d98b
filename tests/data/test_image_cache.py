"""The cache of decoded images: its contents, and that nothing incomplete is taken for one."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lcm.data import image_cache
from lcm.data.image_cache import cached_size, open_cache, shrunk
from lcm.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Nine images of unequal sizes, two of them larger than a short side of 32."""
    paths = {}
    for i in range(9):
        size = (20 + i, 31 - i) if i < 7 else (60, 90 + i)
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), np.uint8)
        paths[f"train/{i}.png"] = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """How many files were decoded."""
    seen, really = [], image_cache.shrunk
    monkeypatch.setattr(image_cache, "shrunk", lambda *given: seen.append(1) or really(*given))
    return seen


def check(cache, files, short_side=32):
    assert len(cache.sizes) == len(files)
    for i, path in enumerate(files.values()):
        assert np.array_equal(cache.image(i), shrunk(path.read_bytes(), short_side))


@pytest.mark.parametrize("short_side", [32, None])
def test_images_are_stored_as_they_are_or_resized_as_torchvision_does(files, tmp_path, short_side):
    from torchvision.transforms import v2

    cache = open_cache(files, tmp_path / "cache", short_side)
    check(cache, files, short_side)
    for i, image in enumerate(map(Image.open, files.values())):
        expected = v2.Resize(32)(image) if short_side and i >= 7 else image
        assert np.array_equal(cache.image(i), np.asarray(expected))


@pytest.mark.parametrize(
    "height, width",
    [(375, 500), (500, 375), (257, 1000), (256, 256), (84, 84), (999, 333), (100, 900)],
)
def test_cached_sizes_are_torchvisions_but_never_larger(height, width):
    from torchvision.transforms import v2

    resized = v2.Resize(256)(Image.new("L", (width, height)))
    expected = (height, width) if min(height, width) <= 256 else (resized.height, resized.width)
    assert cached_size(height, width, 256) == expected


def test_a_complete_cache_is_opened_without_decoding_or_reading_its_pixels(
    files, tmp_path, decoded
):
    """A cache has up to 16 GB: a start checks the index and the size alone."""
    first = open_cache(files, tmp_path / "cache", 32)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(bytes(pixels.stat().st_size))
    again = open_cache(files, tmp_path / "cache", 32)
    assert again.fingerprint == first.fingerprint and len(decoded) == 9
    assert not any(again.image(i).any() for i in range(9))
    larger = open_cache(files, tmp_path / "cache", 40)
    assert len(decoded) == 18 and larger.fingerprint != first.fingerprint


def test_a_changed_file_gets_another_cache_and_the_other_is_named(files, tmp_path, capsys):
    first = open_cache(files, tmp_path / "cache", 32)
    assert capsys.readouterr().out == ""
    (old,) = (tmp_path / "cache").glob("*.pixels")
    path = files["train/3.png"]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = open_cache(files, tmp_path / "cache", 32)
    check(second, files)
    assert second.fingerprint != first.fingerprint
    assert f"{old} (0.0 GB) is another cache; delete it" in capsys.readouterr().out


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
    check(open_cache(files, tmp_path / "cache", 32), files)
    assert path.read_bytes() == whole


def test_of_several_processes_one_makes_the_cache(files, tmp_path, decoded, monkeypatch, capsys):
    slow = image_cache.shrunk
    monkeypatch.setattr(image_cache, "shrunk", lambda *given: time.sleep(0.02) or slow(*given))
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: open_cache(files, tmp_path / "cache", 32), range(4))
        assert len({cache.fingerprint for cache in made}) == 1 and len(decoded) == 9
    assert "another process makes the image cache" in capsys.readouterr().err


def left_in(folder):
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_all_unreadable_images_are_named_and_nothing_is_left(files, tmp_path):
    names = ("train/2.png", "train/5.png")
    for name in names:
        files[name].write_bytes(files[name].read_bytes()[:-200])
    with pytest.raises(UserError, match="2 images cannot be read") as caught:
        open_cache(files, tmp_path / "cache", 32)
    message = str(caught.value)
    assert all((str(path) in message) == (name in names) for name, path in files.items())
    assert not left_in(tmp_path / "cache")


def test_a_full_disk_is_found_before_decoding(files, tmp_path, monkeypatch, decoded):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device.*data\.cache_dir"):
        open_cache(files, tmp_path / "cache", 32)
    assert not decoded and not left_in(tmp_path / "cache")
