"""Class folders of one's own: what is read, which half an image goes to, and what is refused."""

import itertools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import scene
from tiny import after_step, run

import lcm
from lcm.config import compose
from lcm.config.compose import load as load_config
from lcm.data import build_data
from lcm.data.folder import list_images
from lcm.errors import UserError
from lcm.runs.evaluation import evaluate

CLASSES = ("bird", "cat", "dog")
NETWORK = """from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        layers = [nn.Conv2d(3, 4, 7, stride=32), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(4, num_classes))
"""
MODEL = "name: net{}\nfamily: net\nimage_size: {}\n_target_: folder_net.Net\n"


def load(root, side=32, **options):
    """The data set as configs/data/folder.yaml has it."""
    given = {"root": root, "image_size": side, "workers": 0, "cache_size": 90}
    return build_data(load_config("data", "folder") | given | options)


def picture(path, number=0, size=(40, 36), **keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(number, *size).save(path, **keys)


@pytest.fixture
def alone(tmp_path):
    """Three class folders of 40 images, not split."""
    for (c, name), i in itertools.product(enumerate(CLASSES), range(40)):
        picture(tmp_path / "pets" / name / f"{i}.png", 100 * c + i, (20 + c, 20 + i % 3))
    return tmp_path / "pets"


@pytest.fixture
def halves(tmp_path):
    """train/ and test/ of three classes with 4 and 2 images."""
    for (c, name), i in itertools.product(enumerate(CLASSES), range(6)):
        picture(tmp_path / "set" / ("train" if i < 4 else "test") / name / f"{i}.png", 100 * c + i)
    return tmp_path / "set"


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
    """A run on a folder, by a network of its own for 32 or 224 pixels, in a process of its own."""
    (tmp_path / "choices" / "model").mkdir(parents=True)
    for side in (32, 224):
        (tmp_path / f"choices/model/net{side}.yaml").write_text(MODEL.format(side, side))
    (tmp_path / "folder_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    place = (tmp_path / "choices").as_uri()
    compose.use_configs(compose.CONFIGS, [place])
    always = [f"hydra.searchpath=['{place}']", f"runs={tmp_path}/runs", "attention=none"]
    always += ["data=folder", "data.label=pets", "schedule.epochs=2", "schedule.batch_size=4"]

    def trained(root, side, *words, prepare=None):
        config = tiny(*always, f"data.root={root}", f"model=net{side}", *words)
        return run(tmp_path, config, prepare)

    yield trained
    compose.use_configs(compose.CONFIGS)


@pytest.mark.parametrize("side", [32, 224])
def test_a_whole_run(halves, train, side, tmp_path):
    ended = train(halves, side)
    assert ended.code == 0 and "3 classes" in ended.out, ended
    (file,) = (tmp_path / "runs/pets").glob("*/*/*/run.json")
    state = json.loads(file.read_text())
    assert (state["state"], state["data"], state["epochs"]) == ("finished", "pets", 2)
    assert ("data.notes" in state["deviations"]) == (side == 224)  # for which they are small
    assert "already finished" in train(halves, side).out
    compose.use_configs(compose.CONFIGS)
    lcm.load_run(file.parent, config_dir=tmp_path / "choices")
    _, _, probabilities, labels = evaluate(file.parent)
    top1 = 100 * (probabilities.argmax(1) == labels).double().mean().item()
    assert top1 == pytest.approx(state["result"]["test_top1"], abs=1e-4)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_with_the_same_files_alone(halves, train, begun):
    stop = after_step(4, lambda: signal.raise_signal(signal.SIGTERM)) if begun else None
    assert train(halves, 32, prepare=stop).code == (75 if begun else 0)
    new = halves / "train" / "cat" / "new.png"
    picture(new)
    refused = train(halves, 32)
    assert refused.code == 2 and "Traceback" not in refused.err, refused
    assert "data.label=NAME" in refused.err
    new.unlink()
    ended = train(halves, 32)
    words = "continuing  from epoch 2, step 1" if begun else "already finished"
    assert ended.code == 0 and words in ended.out, ended


def test_the_files_are_their_names_and_sizes(halves):
    before = load(halves).files
    one = halves / "train" / "cat" / "0.png"
    new, good = one.with_name("new.png"), one.read_bytes()
    assert load(shutil.copytree(halves, halves.with_name("copy"))).files == before
    for change, undo in (
        (lambda: picture(new), new.unlink),
        (lambda: one.rename(new), lambda: new.rename(one)),
        (lambda: one.write_bytes(good + b"more"), lambda: one.write_bytes(good)),
        (one.unlink, lambda: one.write_bytes(good)),
    ):
        change()
        assert load(halves).files != before
        undo()
        assert load(halves).files == before


def names_of(root, test_share=0.2):
    """(training, test) images as `class/name`, in order."""
    found, _ = list_images(root, test_share)
    return [
        [f"{path.parent.name}/{path.name}" for files in half.values() for path in files]
        for half in found.values()
    ]


def test_small_images_are_squared_and_held_in_memory(halves):
    """One is a photograph that its EXIF turns to the right: upright, as a viewer shows it."""
    exif, path = Image.Exif(), halves / "test" / "cat" / "5.png"
    exif[0x0112] = 6
    picture(path, exif=exif)
    data = load(halves, label="pets", pad=2, mirror=False)
    assert (data.name, data.num_classes, data.classes) == ("pets", 3, list(CLASSES))
    train, test = data.train(4, seed=0).resident, data.test(4).resident
    assert train.images.shape == (12, 32, 32, 3) and test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (train.pad, train.mirror, test.seed) == (2, False, None)
    upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)  # 36x40, whose centre is kept
    expected = upright.resize((32, 32), Image.Resampling.BILINEAR, box=(0, 2, 36, 38))
    assert np.array_equal(test.images[3], np.asarray(expected))
    pixels = train.images.double() / 255
    assert np.allclose(data.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    assert np.allclose(data.std, pixels.std((0, 1, 2), correction=0), atol=1e-12)


@pytest.mark.parametrize("processors, workers", [(None, 1), (2, 2), (64, 4)])
def test_the_size_decides_on_memory_or_a_cache_and_workers(
    halves, monkeypatch, processors, workers
):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert load(halves, 64, workers=None).train(4, 0).resident
    assert not (halves / ".cache").exists()
    assert load(halves, 65, workers=None).workers == workers and (halves / ".cache").is_dir()
    assert next(load(halves, 65).train(5, seed=0).iterate(1))[0].shape == (5, 65, 65, 3)


@pytest.mark.parametrize("test", ["val", "validation"])
def test_the_test_folder_may_have_three_names_and_others_are_named(halves, test):
    expected = load(halves)
    shutil.copytree(halves / "test", halves / test)
    os.mkdir(os.fsencode(halves) + b"/Gr\xf6\xdfe")  # a name that is not UTF-8
    (halves / "train" / "loose.png").touch()
    (halves / "README").touch()
    assert load(halves).unused == [f"not used: Gr��e, README, train/loose.png, {test}"]
    assert load(halves).notes == expected.notes == expected.unused == []  # no deviation
    shutil.rmtree(halves / "test")
    found = load(halves)
    assert (found.fingerprint, found.files) == (expected.fingerprint, expected.files)


def test_images_that_are_added_move_no_other(alone):
    train, test = names_of(alone)
    assert 10 <= len(test) <= 38 and len(train) + len(test) == 120 and not set(train) & set(test)
    assert {name.split("/")[0] for name in test} == set(CLASSES)
    picture(alone / "cat" / "new.png")
    more, more_test = names_of(alone)
    assert set(more) >= set(train) and set(more_test) >= set(test)
    assert set(names_of(alone, test_share=0.5)[1]) >= set(more_test)


@pytest.mark.parametrize("side", [32, 72])
def test_other_images_have_another_fingerprint(halves, side):
    first = load(halves, side).fingerprint
    picture(halves / "train" / "cat" / "0.png", 999)
    second = load(halves, side).fingerprint
    picture(halves / "train" / "cat" / "9.png", 998)
    assert len({first, second, load(halves, side).fingerprint}) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("name", ["0.png", "Größe 1.PNG", "0.TIFF", "0.webp"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, name):
    """In folders of any name, or links to such; files of file managers are no images."""
    for half, folder in itertools.product(("train", "test"), ("a b", "日本")):
        picture(tmp_path / "set" / half / folder / "0.png", size=(32, 32))
        for hidden in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (tmp_path / "set" / half / folder / hidden).write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set" / "train" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "test" / "link").symlink_to(tmp_path / "elsewhere")
    try:
        scene(3, 32, 32).convert(mode).save(tmp_path / "elsewhere" / name, lossless=True)
    except OSError:
        pytest.skip("there is no such file")
    data = load(tmp_path / "set")
    expected = np.asarray(Image.open(tmp_path / "elsewhere" / name).convert("RGB"))
    assert data.classes == ["a b", "link", "日本"]
    assert np.array_equal(data.train(3, seed=0).resident.images[1], expected)


def loop(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train")
    (root / "train" / "cat" / "itself.png").symlink_to("itself.png")


def texts(root):
    for path in (root / "test" / "dog" / "a.txt", root / "train" / "cat" / "b.csv"):
        path.write_text("no image")


WRONG = {  # what is done to a good folder, and what the one message says
    "no folder": (shutil.rmtree, ["set cannot be read (No such file"]),
    "a file": (lambda r: (shutil.rmtree(r), r.write_text("")),
        ["set cannot be read (Not a directory)"]),
    "empty": (lambda r: (shutil.rmtree(r), r.mkdir()),
        ["classes: none", "Expected are train/"]),
    "images without classes": (
        lambda r: (shutil.rmtree(r), picture(r / "a.png")),
            ["classes: none", "class folders"]
    ),
    "one class": (
        lambda r: [shutil.rmtree(r / half / name) for half in ("train", "test") for name in ("cat",
            "dog")],
        ["classes: bird; a network needs at least two"],
    ),
    "a class missing in the test": (lambda r: shutil.rmtree(r / "test" / "cat"),
        ["cat: no test images"]),
    "classes of other names": (
        lambda r: (r / "test" / "cat").rename(r / "test" / "Cat"),
            ["cat: no test images", "Cat: no training images"]
    ),
    "empty classes": (
        lambda r: [(r / half / "fish").mkdir() for half in ("train", "test")],
            ["fish: no training", "fish: no test"]
    ),
    "no test": (lambda r: shutil.rmtree(r / "test"),
        ["train/cat is a folder inside a class folder", "Expected are train/ and test/"]),
    "no train": (lambda r: shutil.rmtree(r / "train"),
        ["test/cat is a folder inside a class folder", "Expected are train/ and test/"]),
    "texts": (texts, ["2 images cannot be read", "dog/a.txt: no image", "cat/b.csv: no image"]),
    "loops of links": (loop, ["again is a folder inside a class folder",
        "itself.png cannot be read (a broken link"]),
    "16 bits": (
        lambda r: Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(r / "train/cat/x.png"),
        ["x.png", "more than 8 bits a channel; convert it"],
    ),
    "a cut image": (
        lambda r: (r / "train/cat/0.png").write_bytes((r / "train/cat/1.png").read_bytes()[:500]),
            ["cat/0.png", "1 image"]
    ),
    "one folder too high": (lambda r: (r.rename(r.with_name("x")), r.mkdir(),
        r.with_name("x").rename(r / "pets")),
        ["classes: pets;", "pets/train is a folder inside a class folder"]),
}  # fmt: skip


@pytest.mark.parametrize("side", [32, 72])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_folder_is_one_message(halves, kind, side):
    damage, words = WRONG[kind]
    damage(halves)
    with pytest.raises(UserError) as caught:
        load(halves, side)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_a_share_cannot_give_is_named(tmp_path):
    for name in CLASSES:
        picture(tmp_path / name / "only.png")
    for share, half in ((0.0001, "test"), (0.9999, "training")):
        with pytest.raises(UserError, match=rf"data\.test_share(?s:.)*cat: no {half} images"):
            load(tmp_path, test_share=share)
    # mini-ImageNet as class folders: 500 + 100 of each are not what a share gives
    with pytest.raises(UserError, match=r"classes: none"):
        load(tmp_path, test_share=None)


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    for half, name in itertools.product(("train", "test"), ("10", "9")):
        picture(tmp_path / half / name / "a.png")
    assert load(tmp_path).classes == ["9", "10"]


def test_images_of_one_colour_are_not_divided_by_nothing(tmp_path):
    for half, name in itertools.product(("train", "test"), ("0", "²")):  # digits, but no numbers
        (tmp_path / half / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / half / name / "a.png")
    batches = load(tmp_path).test(2)
    assert torch.isfinite(batches.prepare(next(batches.iterate(1)), "cpu")[0]).all()
