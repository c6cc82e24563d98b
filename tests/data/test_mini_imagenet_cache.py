"""The cache of decoded images: its contents, and that no incomplete, damaged or other file is taken for one."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lcm.data.mini_imagenet import cache as image_cache
from lcm.data.mini_imagenet.cache import cached_size, decode, open_cache
from lcm.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Nine images of unequal sizes, two of them larger than a short side of 32."""
    paths = []
    for i in range(9):
        size = (20 + i, 31 - i) if i < 7 else (60, 90 + i)
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """Which files were decoded."""
    seen, really = [], image_cache.decode
    monkeypatch.setattr(
        image_cache, "decode", lambda path, *rest: seen.append(path) or really(path, *rest)
    )
    return seen


def check(cache, files, short_side=32):
    assert len(cache) == len(files)
    for i, path in enumerate(files):
        assert np.array_equal(cache.image(i), decode(path, short_side))


@pytest.mark.parametrize("short_side", [32, None])
def test_images_are_stored_as_they_are_or_resized_as_torchvision_does(files, tmp_path, short_side):
    from torchvision.transforms import v2

    cache = open_cache(files, "key", tmp_path / "cache", short_side)
    check(cache, files, short_side)
    for i, image in enumerate(map(Image.open, files)):
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
    whole = open_cache(files, "key", tmp_path / "cache", 32).pixels.tobytes()
    assert sorted(decoded) == files
    (tmp_path / "cache" / "key.pixels").write_bytes(bytes(len(whole)))
    assert not open_cache(files, "key", tmp_path / "cache", 32).pixels.any() and len(decoded) == 9
    open_cache(files, "another key", tmp_path / "cache", 32)
    assert len(decoded) == 18


def test_a_cache_without_an_index_is_made_again(files, tmp_path, decoded):
    """The index is written last: without it the process was killed, whatever the pixel file or a draft holds."""
    whole = open_cache(files, "key", tmp_path / "cache", 32).pixels.tobytes()
    (tmp_path / "cache" / "key.index").unlink()
    (tmp_path / "cache" / "key.pixels").rename(tmp_path / "cache" / "key.draft")
    cache = open_cache(files, "key", tmp_path / "cache", 32)
    assert cache.pixels.tobytes() == whole and len(decoded) == 18
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        "key.index",
        "key.pixels",
        "key.lock",
    }


def test_other_caches_are_named_so_that_they_can_be_deleted(files, tmp_path, capsys):
    open_cache(files, "old", tmp_path / "cache", 32)
    assert capsys.readouterr().out == ""
    open_cache(files, "new", tmp_path / "cache", 32)
    assert (
        f"{tmp_path}/cache/old.pixels (0.0 GB) is another cache; delete it"
        in capsys.readouterr().out
    )


def test_a_damaged_index_is_found_bit_by_bit(files, tmp_path, decoded):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / "key.index"
    whole = path.read_bytes()
    for at in [
        *range(0, 24),
        *range(24, 40, 5),
    ]:  # the header row, and the sizes of the first image
        data = bytearray(whole)
        data[at] ^= 4
        path.write_bytes(data)
        decoded.clear()
        check(open_cache(files, "key", tmp_path / "cache", 32), files)
        assert path.read_bytes() == whole and decoded


@pytest.mark.parametrize("name", ["key.pixels", "key.index"])
@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: d + b"more", lambda d: None]
)
def test_a_cut_or_missing_file_is_found(files, tmp_path, name, damage):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    damaged = damage(whole)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert path.read_bytes() == whole


def test_of_several_processes_one_makes_the_cache(files, tmp_path, decoded, monkeypatch, capsys):
    slow = image_cache.decode
    monkeypatch.setattr(
        image_cache, "decode", lambda *arguments: time.sleep(0.02) or slow(*arguments)
    )
    with ThreadPoolExecutor(4) as threads:
        caches = list(
            threads.map(lambda _: open_cache(files, "key", tmp_path / "cache", 32), range(4))
        )
    assert len(caches) == 4 and sorted(decoded) == files
    assert "another process makes the image cache" in capsys.readouterr().err


def test_all_unreadable_images_are_named_and_nothing_is_left(files, tmp_path):
    for path in (files[2], files[5]):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="2 images cannot be decoded") as caught:
        open_cache(files, "key", tmp_path / "cache", 32)
    assert all((str(path) in str(caught.value)) == (path in (files[2], files[5])) for path in files)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.lock"]


def test_a_full_disk_is_found_before_decoding(files, tmp_path, monkeypatch, decoded):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device.*data\.cache_dir"):
        open_cache(files, "key", tmp_path / "cache", 32)
    assert not decoded and [path.name for path in (tmp_path / "cache").iterdir()] == ["key.lock"]
