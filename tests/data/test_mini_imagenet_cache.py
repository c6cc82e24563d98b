"""The cache of decoded images: what is in it, and that nothing interrupted, damaged or foreign is taken for it."""

import errno
import os
import threading
import time
from types import SimpleNamespace

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
    monkeypatch.setattr(image_cache, "decode", lambda path, *rest: seen.append(path) or really(path, *rest))
    return seen


def check(cache, files, short_side=32):
    assert len(cache) == len(files)
    for i, path in enumerate(files):
        assert np.array_equal(cache.image(i), decode(path, short_side))


def test_images_are_kept_as_they_are_or_resized_as_torchvision_does(files, tmp_path):
    from torchvision.transforms import v2

    cache = open_cache(files, "key", tmp_path / "cache", 32)
    check(cache, files)
    for i in range(7):
        assert np.array_equal(cache.image(i), np.asarray(Image.open(files[i])))
    for i in (7, 8):
        assert np.array_equal(cache.image(i), np.asarray(v2.Resize(32)(Image.open(files[i]))))


@pytest.mark.parametrize(
    "height, width", [(375, 500), (500, 375), (257, 1000), (256, 256), (84, 84), (999, 333), (100, 900)]
)
def test_cached_sizes_are_torchvisions_but_never_larger(height, width):
    from torchvision.transforms import v2

    resized = v2.Resize(256)(Image.new("L", (width, height)))
    expected = (height, width) if min(height, width) <= 256 else (resized.height, resized.width)
    assert cached_size(height, width, 256) == expected


def test_a_complete_cache_is_opened_without_decoding(files, tmp_path, decoded):
    open_cache(files, "key", tmp_path / "cache", 32)
    assert sorted(decoded) == files
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert len(decoded) == 9
    open_cache(files, "another key", tmp_path / "cache", 32)
    assert len(decoded) == 18


def test_null_keeps_images_as_they_are(files, tmp_path):
    cache = open_cache(files, "key", tmp_path / "cache", None)
    for i, path in enumerate(files):
        assert np.array_equal(cache.image(i), np.asarray(Image.open(path)))


def test_a_start_checks_the_index_and_the_size_and_no_pixels(files, tmp_path, decoded):
    """E33: a cache has up to 16 GB, which every start would have to read."""
    whole = open_cache(files, "key", tmp_path / "cache", 32).pixels.tobytes()
    (tmp_path / "cache" / "key.pixels").write_bytes(bytes(len(whole)))
    assert not open_cache(files, "key", tmp_path / "cache", 32).pixels.any() and len(decoded) == 9


def test_a_killed_cache_is_made_anew(files, tmp_path, decoded):
    """The index comes last: without it nothing counts, whatever the pixel file or a draft holds."""
    whole = open_cache(files, "key", tmp_path / "cache", 32).pixels.tobytes()
    (tmp_path / "cache" / "key.index").unlink()
    (tmp_path / "cache" / "key.pixels").rename(tmp_path / "cache" / "key.draft")
    cache = open_cache(files, "key", tmp_path / "cache", 32)
    assert cache.pixels.tobytes() == whole and len(decoded) == 18
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"key.index", "key.pixels", "key.lock"}


def test_other_caches_are_named_so_that_they_can_be_deleted(files, tmp_path, capsys):
    open_cache(files, "old", tmp_path / "cache", 32)
    assert capsys.readouterr().out == ""
    open_cache(files, "new", tmp_path / "cache", 32)
    assert f"{tmp_path}/cache/old.pixels (0.0 GB) is another cache; delete it" in capsys.readouterr().out


def test_a_damaged_index_is_found_bit_by_bit(files, tmp_path, decoded):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / "key.index"
    whole = path.read_bytes()
    for place in [*range(0, 24), *range(24, 40, 5)]:  # the head row, and the sizes of the first image
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        decoded.clear()
        check(open_cache(files, "key", tmp_path / "cache", 32), files)
        assert path.read_bytes() == whole and decoded


@pytest.mark.parametrize("name", ["key.pixels", "key.index"])
@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: d + b"more", lambda d: None])
def test_a_cut_or_missing_file_is_found(files, tmp_path, name, damage):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    damaged = damage(whole)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert path.read_bytes() == whole


def test_processes_that_want_the_same_cache_make_it_once(files, tmp_path, decoded, monkeypatch, capsys):
    slow = image_cache.decode
    monkeypatch.setattr(image_cache, "decode", lambda *arguments: time.sleep(0.02) or slow(*arguments))
    caches = []
    crowd = [
        threading.Thread(target=lambda: caches.append(open_cache(files, "key", tmp_path / "cache", 32)))
        for _ in range(4)
    ]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert len(caches) == 4 and sorted(decoded) == files
    assert "another process makes the image cache" in capsys.readouterr().err


def test_all_unreadable_images_are_named_and_nothing_is_left(files, tmp_path):
    for path in (files[2], files[5]):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="2 images cannot be decoded") as caught:
        open_cache(files, "key", tmp_path / "cache", 32)
    assert all((str(path) in str(caught.value)) == (path in (files[2], files[5])) for path in files)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.lock"]


def test_digests_are_checked(files, tmp_path):
    import hashlib

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    open_cache(files, "right", tmp_path / "cache", 32, digests)
    with pytest.raises(UserError, match=r"3.png: ValueError: not the file that the manifest describes"):
        open_cache(files, "wrong", tmp_path / "cache", 32, [*digests[:3], digests[0], *digests[4:]])


def test_no_space_is_found_before_decoding(files, tmp_path, monkeypatch, decoded):
    for name, replacement, message in (
        ("shutil.disk_usage", lambda path: SimpleNamespace(free=100), r"0\.00 GB free"),
        ("os.posix_fallocate", full, "No space left on device"),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=rf"no space for .*{message}.*data.cache_dir"),
        ):
            patch.setattr(name, replacement)
            open_cache(files, "key", tmp_path / "cache", 32)
        assert not decoded and [path.name for path in (tmp_path / "cache").iterdir()] == ["key.lock"]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_written_is_named(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be written or read .*data.cache_dir=FOLDER"):
        open_cache(files, "key", tmp_path / "file" / "cache", 32)
