"""Class folders of one's own: what is read, which half an image goes to, and what is refused."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import scene

from lcm.config.compose import load as load_config
from lcm.data import build_data
from lcm.errors import UserError

CLASSES = ("bird", "cat", "dog")


def load(root, side=32, **options):
    """The data set as configs/data/folder.yaml has it."""
    given = {"root": root, "image_size": side, "workers": 0}
    return build_data(load_config("data", "folder") | given | options)


def picture(path, number=0, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(number, *size).save(path)


@pytest.fixture
def alone(tmp_path):
    """Three class folders of 40 images, not split."""
    for c, name in enumerate(CLASSES):
        for i in range(40):
            picture(tmp_path / "pets" / name / f"{i}.png", 100 * c + i, (20 + c, 20 + i % 3))
    return tmp_path / "pets"


@pytest.fixture
def halves(tmp_path):
    """train/ and test/ of three classes with 4 and 2 images."""
    for half, count in (("train", 4), ("test", 2)):
        for c, name in enumerate(CLASSES):
            for i in range(count):
                picture(tmp_path / "set" / half / name / f"{i}.png", 100 * c + 10 * count + i)
    return tmp_path / "set"


def names_of(root, **options):
    """(training, test) images as `class/name`, in order."""
    from lcm.data.folder import list_images

    found, _ = list_images(root, **options)
    return [
        [f"{path.parent.name}/{path.name}" for files in half.values() for path in files]
        for half in found.values()
    ]


def test_small_images_are_squared_and_held_in_memory(halves):
    data = load(halves, label="pets")
    assert (data.name, data.num_classes, data.classes) == ("pets", 3, list(CLASSES))
    train, test = data.train(4, seed=0).resident, data.test(4).resident
    assert train.images.shape == (12, 32, 32, 3) and test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    image = Image.open(halves / "test" / "cat" / "1.png")  # 40x36, whose centre is kept
    expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=(2, 0, 38, 36))
    assert np.array_equal(test.images[3], np.asarray(expected))
    pixels = train.images.double() / 255
    assert np.allclose(data.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    assert np.allclose(data.std, pixels.std((0, 1, 2), correction=0), atol=1e-12)
    batch, labels = next(data.train(12, seed=0).iterate(0))
    assert batch.shape == (12, 32, 32, 3) and sorted(labels.tolist()) == train.labels.tolist()


def test_large_images_are_cut_by_the_network_that_takes_them(halves):
    data = load(halves, 72, cache_size=90)
    batches = data.train(5, seed=0)
    shapes = [batches.prepare(raw, "cpu")[0].shape for raw in batches.iterate(0)]
    assert shapes == [(5, 3, 72, 72), (5, 3, 72, 72), (2, 3, 72, 72)]
    assert (halves / ".cache").is_dir() and data.notes[0].startswith("low resolution: images of 40")
    assert load(halves, 72, cache_size=90).fingerprint == data.fingerprint


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_the_test_folder_may_have_three_names(halves, test):
    expected = load(halves).fingerprint
    (halves / "test").rename(halves / test)
    assert load(halves).fingerprint == expected


def test_a_folder_that_is_not_used_is_named(halves):
    shutil.copytree(halves / "test", halves / "val")
    assert load(halves).notes == ["not used: val"]


def test_images_that_are_added_move_no_other(alone):
    train, test = names_of(alone, test_share=0.2)
    assert 10 <= len(test) <= 38 and len(train) + len(test) == 120 and not set(train) & set(test)
    assert {name.split("/")[0] for name in test} == set(CLASSES)
    picture(alone / "cat" / "new.png")
    more, more_test = names_of(alone, test_share=0.2)
    assert set(more) >= set(train) and set(more_test) >= set(test)
    assert set(names_of(alone, test_share=0.5)[1]) >= set(more_test)


def test_a_limit_takes_the_same_images_of_each_class_and_leaves_the_test(alone):
    train, test = names_of(alone)
    ten, same_test = names_of(alone, limit=10)
    five, _ = names_of(alone, limit=5)
    assert len(ten) == 30 and len(five) == 15 and same_test == test
    assert set(five) < set(ten) < set(train) and ten == sorted(ten)
    assert load(alone, limit=10).fingerprint != load(alone).fingerprint


@pytest.mark.parametrize("side", [32, 72])
def test_other_images_have_another_fingerprint(halves, side):
    def fingerprint():
        return load(halves, side, cache=False).fingerprint

    first = fingerprint()
    copy = shutil.copytree(halves, halves.parent / "copy")
    assert load(copy, side, cache=False).fingerprint == first
    picture(halves / "train" / "cat" / "0.png", 999)
    second = fingerprint()
    picture(halves / "train" / "cat" / "9.png", 998)
    assert len({first, second, fingerprint()}) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(halves, mode):
    path = halves / "train" / "cat" / ("0.tif" if mode == "CMYK" else "0.png")
    scene(3, 32, 32).convert(mode).save(path)
    images = load(halves).train(4, seed=0).resident.images
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert any(np.array_equal(image, expected) for image in images)


def loop(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    (root / "train" / "cat" / "itself.png").symlink_to("itself.png")


def deep_photographs(root):
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(root / "train" / "cat" / "x.png")


def texts(root):
    for name in ("a.txt", "b.csv"):
        (root / "test" / "dog" / name).write_text("no image")


def hide(path):
    """Unreadable for root too: a link to nothing in place of the file."""
    path.unlink()
    path.symlink_to(path.parent / "gone")


WRONG = {  # what is done to a good folder, and what the one message says
    "no folder": (shutil.rmtree, ["set cannot be read (No such file"]),
    "a file": (lambda r: (shutil.rmtree(r), r.write_text("")), ["set cannot be read (Not a directory)"]),
    "empty": (lambda r: (shutil.rmtree(r), r.mkdir()), ["there are no class folders", "Expected are train/"]),
    "images without classes": (
        lambda r: (shutil.rmtree(r), picture(r / "a.png")), ["there are no class folders", "class folders"]
    ),
    "one class": (
        lambda r: [shutil.rmtree(r / half / name) for half in ("train", "test") for name in ("cat", "dog")],
        ["there is one class, bird"],
    ),
    "a class missing in the test": (lambda r: shutil.rmtree(r / "test" / "cat"), ["cat: no test images"]),
    "classes of other names": (
        lambda r: (r / "test" / "cat").rename(r / "test" / "Cat"), ["cat: no test images", "Cat: no training images"]
    ),
    "empty classes": (
        lambda r: [(r / half / "fish").mkdir() for half in ("train", "test")], ["fish: no training", "fish: no test"]
    ),
    "no test": (lambda r: shutil.rmtree(r / "test"), ["train/ is there and test/ is not", "data.root="]),
    "texts": (texts, ["2 images cannot be read", "dog/a.txt", "dog/b.csv"]),
    "loops of links": (loop, ["again is a folder inside of a class", "itself.png cannot be read (Too many levels"]),
    "a broken link": (lambda r: hide(r / "test" / "cat" / "0.png"), ["0.png cannot be read (No such file"]),
    "16 bits": (deep_photographs, ["x.png", "more than 8 bits a channel; convert it"]),
    "a cut image": (
        lambda r: (r / "train/cat/0.png").write_bytes((r / "train/cat/1.png").read_bytes()[:500]), ["cat/0.png", "1 images"]
    ),
    "one folder too high": (lambda r: (r.rename(r.with_name("x")), r.mkdir(), r.with_name("x").rename(r / "pets")),
        ["there is one class, pets", "pets/train is a folder inside of a class"]),
}  # fmt: skip


@pytest.mark.parametrize("side", [32, 72])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_folder_is_one_message(halves, kind, side):
    damage, words = WRONG[kind]
    damage(halves)
    with pytest.raises(UserError) as caught:
        load(halves, side, cache_size=90)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("hidden", ["train", "test/cat", "test/cat/0.png"])
def test_what_may_not_be_read_is_one_message(halves, hidden):
    (halves / hidden).chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot be read.*Permission denied"):
            load(halves)
    finally:
        (halves / hidden).chmod(0o755)


def test_no_root_and_small_classes_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"data=folder needs the folder .* data\.root=FOLDER"):
        load(None)
    for name in CLASSES:
        picture(tmp_path / "few" / name / "only.png")
    with pytest.raises(UserError, match=r"no test images"):
        load(tmp_path / "few", test_share=0.0001)


def test_images_of_one_colour_are_not_divided_by_nothing(tmp_path):
    for name in ("black", "none"):
        for i in range(30):
            path = tmp_path / "flat" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)
    batches = load(tmp_path / "flat").test(4)
    assert torch.isfinite(batches.prepare(next(batches.iterate(0)), "cpu")[0]).all()
