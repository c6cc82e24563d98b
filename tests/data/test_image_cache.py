"""The cache of decoded images: its contents, and that nothing incomplete is taken for one."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from lcm.data import image_cache
from lcm.data.image_cache import decode, open_cache
from lcm.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Nine images of unequal sizes, two of them larger than a short side of 32."""
    paths = {f"train/{i}.png": tmp_path / f"{i}.png" for i in range(9)}
    for i, path in enumerate(paths.values()):
        scene(i, *((20 + i, 31 - i) if i < 7 else (60, 90 + i))).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """How many files were decoded."""
    seen, really = [], image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *given: seen.append(1) or really(*given))
    return seen


def check(cache, files, short_side=32):
    assert len(cache.sizes) == len(files)
    for i, path in enumerate(files.values()):
        assert np.array_equal(cache.image(i), np.asarray(decode(path.read_bytes(), short_side)))


SIZES = [(375, 500), (500, 375), (257, 1000), (256, 256), (84, 84), (999, 333), (100, 900)]


@pytest.mark.parametrize("short_side", [256, None])
def test_images_are_stored_as_torchvision_resizes_them_but_never_larger(tmp_path, short_side):
    from torchvision.transforms import v2

    files = {}
    for i, (width, height) in enumerate(SIZES):
        files[f"{i}"] = tmp_path / f"{i}.png"
        scene(i, width, height).save(files[f"{i}"])
    cache = open_cache(files, tmp_path / "cache", short_side)
    for i, image in enumerate(map(Image.open, files.values())):
        large = short_side and min(image.size) > short_side
        expected = v2.Resize(short_side)(image) if large else image
        assert np.array_equal(cache.image(i), np.asarray(expected))


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
    slow = image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *given: time.sleep(0.02) or slow(*given))
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: open_cache(files, tmp_path / "cache", 32), range(4))
        assert len({cache.fingerprint for cache in made}) == 1 and len(decoded) == 9
    assert "another process is making the image cache" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["an image is cut", "the disk is full"])
def test_nothing_is_left_where_it_cannot_be_made(files, tmp_path, monkeypatch, kind):
    words = {
        "an image is cut": "1 images cannot be read",
        "the disk is full": "No space left on dev",
    }

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if kind == "an image is cut":
        path = files["train/5.png"]
        path.write_bytes(path.read_bytes()[:-200])
    else:
        monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=words[kind]):
        open_cache(files, tmp_path / "cache", 32)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}
