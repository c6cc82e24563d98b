"""The cache of decoded images: what is in it, and that nothing interrupted, damaged or foreign is taken for it."""

import errno
import os
import subprocess
import sys
import threading
import time

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


def test_a_cache_killed_in_the_middle_is_continued(tmp_path, decoded):
    files = []
    for i in range(300):
        Image.effect_noise((90, 80), 50).convert("RGB").save(tmp_path / f"{i}.jpg")
        files.append(tmp_path / f"{i}.jpg")
    program = (
        "import sys; from lcm.data.mini_imagenet.cache import open_cache\n"
        "open_cache(sys.argv[3:], 'key', sys.argv[1], int(sys.argv[2]))"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "cache", "32", *files], stderr=subprocess.DEVNULL
    )
    index = tmp_path / "cache" / "key.index"

    def marked():
        return np.count_nonzero(np.fromfile(index, np.int64).reshape(-1, 3)[1:, 2]) if index.exists() else 0

    while marked() < 40 and started.poll() is None:
        time.sleep(0.001)
    started.kill()
    started.wait()
    there = marked()
    assert 40 <= there < 300, "it was to be killed in the middle"
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert len(decoded) == 300 - there
    open_cache(files, "key", tmp_path / "whole", 32)
    for name in ("key.pixels", "key.index"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_every_flipped_bit_is_found_and_only_its_image_decoded_again(files, tmp_path, decoded):
    cache = open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / "key.pixels"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(50):
        data = bytearray(whole)
        place = int(rng.integers(len(data)))
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        decoded.clear()
        check(open_cache(files, "key", tmp_path / "cache", 32), files)
        assert decoded == [files[np.searchsorted(cache.starts * 3, place, side="right") - 1]]
        assert path.read_bytes() == whole


def test_a_damaged_index_is_found_bit_by_bit(files, tmp_path, decoded):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / "key.index"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        data = bytearray(whole)
        data[place] ^= 4
        path.write_bytes(data)
        decoded.clear()
        check(open_cache(files, "key", tmp_path / "cache", 32), files)
        assert decoded and path.read_bytes() == whole


@pytest.mark.parametrize("name", ["key.pixels", "key.index"])
@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: d + b"more", lambda d: None])
def test_a_cut_or_missing_file_is_found(files, tmp_path, name, damage):
    open_cache(files, "key", tmp_path / "cache", 32)
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    damaged = damage(whole)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert path.read_bytes()[: len(whole)] == whole


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


def test_all_unreadable_images_are_named_and_the_others_kept(files, tmp_path, decoded):
    good = {path: path.read_bytes() for path in (files[2], files[5])}
    files[2].write_bytes(good[files[2]][:-200])
    files[5].write_bytes(good[files[5]][:-300])
    with pytest.raises(UserError) as caught:
        open_cache(files, "key", tmp_path / "cache", 32)
    assert "2 images cannot be decoded" in str(caught.value)
    assert all(str(path) in str(caught.value) for path in good)
    for path, data in good.items():
        path.write_bytes(data)
    decoded.clear()
    check(open_cache(files, "key", tmp_path / "cache", 32), files)
    assert sorted(decoded) == sorted(good)


def test_digests_are_checked(files, tmp_path):
    import hashlib

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    open_cache(files, "right", tmp_path / "cache", 32, digests)
    with pytest.raises(UserError, match=r"3.png: ValueError: not the file that the manifest describes"):
        open_cache(files, "wrong", tmp_path / "cache", 32, [*digests[:3], digests[0], *digests[4:]])


def test_no_space_before_and_while_decoding(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"no space for the image cache .* 0.0 free"):
        status = os.statvfs(tmp_path)
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result((status.f_bsize, 1, 1, 1, 1, *status[5:])))
        open_cache(files, "key", tmp_path / "cache", 32)
    really, written = os.pwrite, []

    def full(descriptor, data, offset):
        if len(written) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(offset)
        return really(descriptor, data, offset)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"No space left on device.*data.cache_dir=FOLDER"),
    ):
        patch.setattr(os, "pwrite", full)
        open_cache(files, "key", tmp_path / "cache", 32)
    check(open_cache(files, "key", tmp_path / "cache", 32), files)


def test_a_short_write_is_completed(files, tmp_path, monkeypatch):
    really = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: really(descriptor, data[:100], offset))
    check(open_cache(files, "key", tmp_path / "cache", 32), files)


def test_a_folder_that_cannot_be_written_is_named(files, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be written or read .*data.cache_dir=FOLDER"):
        open_cache(files, "key", tmp_path / "file" / "cache", 32)
