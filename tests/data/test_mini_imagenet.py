"""mini-ImageNet's batches, from the cache or from the files."""

import contextlib
import itertools
import math
import os
import pickle
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import SIZES, by_torchvision, scene
from torchvision.transforms import v2

from lcm.config.compose import load as load_config
from lcm.data import build_data
from lcm.data.in_memory import keyed_generator
from lcm.data.mini_imagenet.batches import MEAN, STD, two_ahead
from lcm.data.mini_imagenet.copies import WNIDS
from lcm.data.mini_imagenet.prepare import prepare
from lcm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of 5 + 2 images in all sizes, one of them grey, one CMYK, one PNG."""
    root = tmp_path_factory.mktemp("mini") / "mini-imagenet"
    for (c, wnid), (split, count) in itertools.product(
        enumerate(WNIDS[:3]), (("train", 5), ("test", 2))
    ):
        folder = root / split / wnid
        folder.mkdir(parents=True)
        for i in range(count):
            image = scene(100 * c + 10 * count + i, *SIZES[(3 * c + i + count) % len(SIZES)])
            if split == "test" and i == 0 and c < 2:
                image = image.convert(("L", "CMYK")[c])
            image.save(
                folder / f"{wnid}{10 * count + i:08}.{'png' if c == 2 and i == 0 else 'jpg'}"
            )
    return root


def load(root, **options):
    """The data set of three classes, otherwise as configs/data has it."""
    return build_data(
        load_config("data", "mini_imagenet") | {"num_classes": 3, "root": root} | options
    )


@pytest.fixture
def data_set(root, tmp_path):
    return load(root, cache_dir=tmp_path / "cache")


def level(values):
    """Normalised (B, 3, H, W) -> grey levels 0 to 255, (B, H, W, 3)."""
    scale, shift = (torch.tensor(v)[:, None, None] for v in (STD, MEAN))
    return ((values * scale + shift) * 255).permute(0, 2, 3, 1).numpy()


def test_test_images_of_the_cache_are_those_of_the_files(root, data_set):
    batches = data_set.test(6), load(root, cache=False).test(6)
    cached, read = (b.prepare(b.epoch(0)[0], CPU) for b in batches)
    assert torch.equal(cached[1], read[1]) and cached[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert cached[0].shape == (6, 3, 224, 224) and cached[0].is_contiguous(
        memory_format=torch.channels_last
    )
    assert abs(level(cached[0]) - level(read[0])).max() < 1.01
    path = sorted((root / "test" / WNIDS[0]).iterdir())[1]
    by_hand = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                          v2.Normalize(MEAN, STD)])(Image.open(path))  # fmt: skip
    assert (
        abs(read[0][1] - by_hand).max() < 1e-5
        and abs(level(cached[0][1:2]) - level(by_hand[None])).max() < 1.01
    )


def test_training_batches_show_what_the_plan_says(data_set):
    batches = data_set.train(8, seed=3)
    raw = next(batches.iterate(5))
    index, views, mirror, labels = raw
    images, out_labels = batches.prepare(raw, CPU)
    assert torch.equal(labels, out_labels) and set(mirror.tolist()) == {True, False}
    cache = data_set._images.cache
    for i, view, flip, shown in zip(
        index.tolist(), views.tolist(), mirror.tolist(), level(images), strict=True
    ):
        expected = by_torchvision(Image.fromarray(np.array(cache.image(i))), view, flip)
        assert abs(shown - expected).max() < 1.01 and abs(shown - expected).mean() < 0.5


@pytest.mark.parametrize("way", ["resident", "packed", "packed ahead"])
def test_the_gpus_path_gives_the_cpus_pixels(data_set, way):
    """Run on the CPU: all pixels on the device, or only the regions of a batch sent there, packed ahead by a thread."""
    batches, images = data_set.train(4, seed=0), data_set._images
    expected = [batches.prepare(raw, CPU) for raw in batches.iterate(0)]
    images._pixels[CPU] = torch.from_numpy(images.cache.pixels) if way == "resident" else None
    raws = list(batches.iterate(0) if way != "packed" else batches.epoch(0))
    assert [len(raw) for raw in raws] == [6 if way == "packed ahead" else 4] * 4
    for raw, (pixels, labels) in zip(raws, expected, strict=True):
        got, got_labels = images._on_gpu(raw, CPU)
        assert torch.equal(labels, got_labels) and got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        difference = abs(level(got) - level(pixels))
        assert difference.mean() < 0.5 and difference.max() < 2


def test_work_is_done_two_items_ahead_in_order():
    done = []
    items = two_ahead(range(6), lambda item: done.append(item) or 10 * item)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [0, 1, 2] and list(items) == [10, 20, 30, 40, 50]
    with pytest.raises(ZeroDivisionError):
        list(two_ahead([1, 0], lambda item: 1 / item))


@pytest.mark.parametrize(
    "share, free, fits", [(0.5, 2.1, True), (0.5, 1.9, False), (0.9, 1.2, True)]
)
def test_pixels_stay_on_a_gpu_where_they_fit_a_share_of_its_memory(
    data_set, monkeypatch, share, free, fits
):
    """Memory that the allocator keeps for reuse counts as free."""
    images, size = data_set._images, data_set._images.cache.pixels.nbytes
    images.share, released = share, []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(size))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (free * size - (0 if released else size), 0)
    )
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    assert (images._resident_pixels("a GPU") is not None) == fits


@pytest.mark.parametrize(
    "error, outcome",
    [
        (torch.cuda.OutOfMemoryError("Allocation on device"), contextlib.nullcontext()),
        (
            RuntimeError("CUDA error: out of memory"),
            contextlib.nullcontext(),
        ),  # torch.AcceleratorError is one
        (
            RuntimeError("CUDA error: device-side assert triggered"),
            pytest.raises(RuntimeError, match="device-side"),
        ),
    ],
)
def test_memory_taken_by_another_process_meanwhile_is_no_error(
    data_set, monkeypatch, error, outcome
):
    images = data_set._images
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (10 * images.cache.pixels.nbytes, 0)
    )
    monkeypatch.setattr(torch.Tensor, "to", Mock(side_effect=error))
    with outcome:
        assert images._resident_pixels("a GPU") is None


def test_threads_change_nothing(data_set):
    batches, threads = data_set.train(15, seed=0), torch.get_num_threads()
    raw = batches.epoch(1)[0]
    one = batches.prepare(raw, CPU)[0]
    try:
        torch.set_num_threads(3)
        several = batches.prepare(raw, CPU)[0]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, several)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_pixels(data_set):
    batches = data_set.train(15, seed=0)
    raw = batches.epoch(0)[0]
    on_gpu, on_cpu = (batches.prepare(raw, device)[0] for device in ("cuda", CPU))
    assert abs(level(on_gpu.cpu()) - level(on_cpu)).mean() < 0.5


def bytes_of(batches, epoch, start=0):
    shown = ((*raw, *batches.prepare(raw, CPU)) for raw in batches.iterate(epoch, start))
    return [[part.numpy().tobytes() for part in parts] for parts in shown]


@pytest.mark.parametrize("cache", [True, False])
def test_neither_workers_nor_the_start_nor_the_past_change_a_byte(root, tmp_path, cache):
    def batches(workers):
        return load(root, cache=cache, cache_dir=tmp_path, workers=workers, image_size=64).train(
            4, seed=7
        )

    torch.manual_seed(11)
    state = torch.get_rng_state()
    whole = bytes_of(batches(0), 2)
    assert len(whole) == len(batches(0)) == 4
    with_workers = batches(2)
    assert bytes_of(with_workers, 2) == whole
    assert bytes_of(with_workers, 2, start=3) == whole[3:]
    later = batches(0)
    list(later.iterate(0))
    epoch = pickle.loads(pickle.dumps(later.epoch(2)))
    for i in (3, 1):
        assert [part.numpy().tobytes() for part in epoch[i]] == whole[i][: len(epoch[i])]
    assert torch.equal(state, torch.get_rng_state())
    assert bytes_of(batches(0), 3) != whole


@pytest.mark.parametrize("cache", [True, False])
def test_an_epoch_shows_every_training_image_once_in_a_new_order(root, tmp_path, cache):
    data_set = load(root, cache=cache, cache_dir=tmp_path, image_size=32)
    batches = data_set.train(4, seed=0)
    orders = [batches.epoch(e).plan[0].tolist() for e in range(3)]
    assert (
        all(sorted(order) == list(range(15)) for order in orders)
        and orders[0] != orders[1] != orders[2]
    )
    assert data_set.train(4, seed=1).epoch(0).plan[0].tolist() != orders[0]
    assert (len(batches), batches.images) == (4, 15)
    alone = data_set.train(7, seed=0)
    assert (len(alone), alone.images) == (2, 14), "a last batch of one image is left out"
    test = data_set.test(5)
    assert (len(test), test.images) == (2, 6)
    assert [raw[-1].tolist() for raw in test.iterate(0)] == [[0, 0, 1, 1, 2], [2]]


def test_every_second_image_is_mirrored_whatever_its_region(data_set):
    index = torch.zeros(20_000, dtype=torch.int64)
    views, mirror = data_set._images.draw(index, keyed_generator(0, 0, "crop"))
    assert abs(mirror.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(np.corrcoef(mirror, views[:, 1])[0, 1]) < 4 / math.sqrt(20_000)


def test_classes_fingerprint_and_notes(root, tmp_path):
    data_set = load(root, cache_dir=tmp_path / "cache")
    assert (
        data_set.classes == list(WNIDS[:3])
        and data_set.name == "mini_imagenet"
        and data_set.image_size == 224
    )
    (note,) = data_set.notes
    assert note.startswith(
        "a part of mini-ImageNet: 3 classes, 15 + 6 images, where the whole has 100 classes, 50,000"
    )
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert load(copy, cache=False).fingerprint == data_set.fingerprint
    manifest = prepared(copy)
    checked = load(copy, cache_dir=tmp_path / "cache")
    assert len(checked.fingerprint) == 64 and checked.fingerprint != data_set.fingerprint
    for path in copy.rglob("*.*g"):
        scene(1, 84, 84).save(path)
    manifest.unlink()
    (note,) = load(copy, cache=False).notes[1:]
    assert "images of 84x84" in note and "enlarged" in note


def prepared(root):
    source = root.rename(root.with_name("source"))
    prepare(source, root, allow_partial=True)
    return root / "manifest.csv"


def change_one_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def after_preparing(damage):
    """`damage` of an image of a prepared folder."""
    return lambda root: (prepared(root), damage(next(root.glob("train/*/*51.jpg"))))


BAD = {  # what is done to a folder, changed options, and the message
    "no such folder": (shutil.rmtree, {}, "train cannot be read"),
    "no test images": (lambda root: shutil.rmtree(root / "test"), {}, "test cannot be read"),
    "a class in one split": (lambda root: shutil.rmtree(root / "test" / WNIDS[1]), {}, f"{WNIDS[1]}: images only in train"),
    "empty splits": (lambda root: [*map(shutil.rmtree, root.glob("*/*"))], {}, "of the same classes; there are none"),
    "too many classes": (lambda root: None, {"num_classes": 2}, "holds 3 classes, and data.num_classes is 2"),
    "a broken link": (lambda root: (root / "train" / WNIDS[0] / "a.jpg").symlink_to("gone"), {}, "a.jpg cannot be read"),
    "damaged manifest": (lambda root: prepared(root).write_text("path,size\nx"), {}, "manifest.csv is damaged"),
    "a missing image": (after_preparing(Path.unlink), {}, "00000051.jpg: no bytes instead of"),
    "an extra image": (after_preparing(lambda p: p.with_name("new.jpg").touch()), {}, "new.jpg: 0 bytes instead of no"),
    "another size": (after_preparing(lambda p: p.write_bytes(b"x")), {}, "00000051.jpg: 1 bytes instead of"),
    "a changed byte": (after_preparing(change_one_byte), {}, "its SHA-256 is another"),
    "a text": (lambda root: (root / "test" / WNIDS[0] / "a.txt").touch(), {}, "1 images cannot be decoded"),
    "a cache too small for the test": (lambda root: None, {"cache_size": 240}, "data.cache_size=240"),
    "a cache where there is a file": (lambda root: (root / "cache").touch(), {}, "data.cache_dir=FOLDER"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_named(name, root, tmp_path):
    damage, options, words = BAD[name]
    copy = shutil.copytree(root, tmp_path / "copy")
    damage(copy)
    with pytest.raises(UserError) as caught:
        load(copy, **options)
    assert words in str(caught.value)


def test_the_plain_loader_names_a_file_that_it_cannot_decode(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    bad = next(copy.glob("test/*/*.jpg"))
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError, match=f"{bad.name} cannot be decoded"):
        list(load(copy, cache=False).test(4).iterate(0))


@pytest.mark.skipif(
    "LCM_TEST_DATA" not in os.environ, reason="set LCM_TEST_DATA to a folder with mini-imagenet/"
)
def test_the_real_slice_prepared_from_both_layouts(tmp_path):
    source = Path(os.environ["LCM_TEST_DATA"]) / "mini-imagenet"
    merged = tmp_path / "merged"
    for split in ("train", "test"):
        shutil.copytree(source / split, merged, dirs_exist_ok=True)
    report = prepare(source, tmp_path / "c", allow_partial=True)
    prepare(merged, tmp_path / "b", allow_partial=True)
    made = [(tmp_path / layout / "manifest.csv").read_text() for layout in ("b", "c")]
    assert made[0] == made[1] and "images of 84x84" in report
    data_set = load(tmp_path / "c", num_classes=100)
    assert (
        len(data_set.classes) == 100
        and data_set.train(64, 0).images == 2000
        and data_set.test(64).images == 500
    )
    plain = load(tmp_path / "c", num_classes=100, cache=False)
    for one, other in zip(data_set.test(50).iterate(0), plain.test(50).iterate(0), strict=True):
        images, expected = (
            data_set.test(50).prepare(one, CPU)[0],
            plain.test(50).prepare(other, CPU)[0],
        )
        assert abs(level(images) - level(expected)).max() < 1.01
