"""CIFAR from copies of its files, small ones and the real ones; what is damaged or malicious.

Tests on the real files need LCM_TEST_DATA, a folder with cifar-10-batches-py (official).
"""

import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lcm.config.compose import load as load_config
from lcm.data import build_data, cifar
from lcm.errors import UserError


def records(name):
    """{file: record} in the official layout: 200 + 100 images, as many of each class."""
    official = cifar.OFFICIAL[name]
    random = np.random.default_rng(official.num_classes)
    files = {}
    for part, count in ((official.train, 200), (official.test, 100)):
        labels = random.permutation(np.arange(count) % official.num_classes)
        for file, chosen in zip(part, np.array_split(labels, len(part)), strict=True):
            files[file] = {
                official.labels_key: chosen.tolist(),
                "data": random.integers(0, 256, (len(chosen), 3072), dtype=np.uint8),
            }
    names = [f"class{i:02}" for i in range(official.num_classes)]
    files[official.meta] = {official.names_key: names, "num_vis": 3072}
    return files


def arrays(name, part):
    """(images (N, 32, 32, 3), labels (N,)) of records(name), by plain numpy."""
    official, files = cifar.OFFICIAL[name], records(name)
    chosen = [files[file] for file in getattr(official, part)]
    images = (
        np.concatenate([r["data"] for r in chosen]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    return images, np.concatenate([r[official.labels_key] for r in chosen])


def load(root, name, **options):
    """The data set as configs/data has it, from `root`, without downloading."""
    return build_data(load_config("data", name) | {"root": root, "download": False} | options)


def held(name, part):
    """`arrays` as the data set holds them: CIFAR-100 by label, then SHA-256 of the pixels."""
    images, labels = arrays(name, part)
    if name == "cifar10":
        return images, labels
    digests = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]
    order = np.lexsort((digests, labels))
    return images[order], labels[order]


def holds(data, name):
    """Whether the data set is exactly records(name), in the order of `held`."""
    halves = {"train": data.train(64, seed=0).resident, "test": data.test(64).resident}
    return all(
        np.array_equal(ours, theirs)
        for part, half in halves.items()
        for ours, theirs in zip((half.images, half.labels), held(name, part), strict=True)
    )


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name) -> a root with the unpacked folder, whose images become the official ones."""

    def build(name, protocol=4):
        official = cifar.OFFICIAL[name]
        folder = tmp_path / "root" / official.folder
        folder.mkdir(parents=True)
        for file, record in records(name).items():
            (folder / file).write_bytes(pickle.dumps(record, protocol=protocol))
        contents = cifar._contents(arrays(name, "train"), arrays(name, "test"))
        monkeypatch.setattr(official, "contents", contents)
        monkeypatch.setattr(cifar, "IMAGES", {"train": 200, "test": 100})
        return tmp_path / "root"

    return build


REAL = os.environ.get("LCM_TEST_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="needs LCM_TEST_DATA, a folder with the real CIFAR files"
)


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


STATISTICS = {  # of the training images, as they are usually printed
    "cifar10": [0.4914, 0.4822, 0.4465, 0.2470, 0.2435, 0.2616],
    "cifar100": [0.5071, 0.4865, 0.4409, 0.2673, 0.2564, 0.2762],
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_unpacked_folder(small, name, protocol):
    """Also as `root` itself, and one folder deeper, as unpacking into a folder of its name has."""
    root, folder = small(name, protocol), cifar.OFFICIAL[name].folder
    data = load(root, name)
    assert holds(data, name) and data.classes[3] == "class03"
    assert len(data.classes) == data.num_classes
    shown = data.train(64, seed=0).resident
    assert [shown.pad, shown.mirror, *shown.mean, *shown.std] == pytest.approx(
        [4, True, *STATISTICS[name]], abs=1e-4
    )
    assert load(root / folder, name).fingerprint == data.fingerprint
    for place in (folder, "kaggle"):
        target = root / f"in {place}" / place
        shutil.copytree(root / folder, target / folder)
        assert holds(load(target.parent, name), name)


def test_class_folders(small, name, tmp_path):
    """PNG files are the same set, in the order of the classes; JPEG files are another one."""
    official = load(small(name), name)
    for kind in ("png", "jpg"):
        for part in ("train", "test"):
            for i, (image, label) in enumerate(zip(*arrays(name, part), strict=True)):
                file = tmp_path / kind / part / f"class{label:02}" / f"{i:04}.{kind}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
    data = load(tmp_path / "png", name)
    assert data.classes == official.classes
    ours, theirs = data.train(64, seed=0).resident, official.train(64, seed=0).resident
    order = torch.from_numpy(np.argsort(theirs.labels.numpy(), kind="stable"))
    assert torch.equal(ours.images, theirs.images[order])
    assert torch.equal(ours.labels, theirs.labels[order])
    # another order is another set to train on, but for CIFAR-100, which has an order of its own
    assert (data.fingerprint == official.fingerprint) == (name == "cifar100")
    with pytest.raises(UserError, match=r"does not have exactly the images .*JPEG copies"):
        load(tmp_path / "jpg", name)
    next((tmp_path / "png" / "train" / "class01").iterdir()).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"(?s)1 image cannot be read.*class01/\d+\.png"):
        load(tmp_path / "png", name)
    shutil.rmtree(tmp_path / "png" / "train" / "class00")  # those of another set
    with pytest.raises(UserError, match=r"is not under .*no train/<class>/ and test/<class>/"):
        load(tmp_path / "png", name)


def test_an_archive_is_downloaded_once_and_unpacked_once(small, name, monkeypatch, tmp_path):
    """It is judged by its content: this one does not have the official one's md5."""
    root, new, official = small(name), tmp_path / "new", cifar.OFFICIAL[name]

    def fetch(target, places, md5):
        assert (places, md5) == (["http://mirror"], official.archive_md5)
        with tarfile.open(target, "w:gz", compresslevel=1) as tar:
            tar.add(root / official.folder, official.folder)

    with monkeypatch.context() as patch:
        patch.setattr(cifar, "fetch", fetch)
        assert holds(load(new, name, download=True, places=["http://mirror"]), name)
    shutil.rmtree(new / official.folder)
    # what another process unpacks, or has left behind
    draft = new / f".{official.folder}.x" / official.folder
    shutil.copytree(root / official.folder, draft)
    (draft / official.train[0]).write_bytes(b"not yet")
    assert holds(load(new, name), name)
    assert {path.name for path in new.glob("[!.]*")} == {official.folder, official.archive}
    (new / official.archive).unlink()
    assert holds(load(new, name), name)


@pytest.mark.parametrize("alter", ["", "pixel", "label"])
def test_the_content_decides_and_not_the_order(small, name, alter):
    """The training files of a copy in reversed order, with one pixel or label changed."""
    root, official = small(name), cifar.OFFICIAL[name]
    expected = load(root, name)
    for file in official.train:
        record = records(name)[file]
        record["data"] = record["data"][::-1].copy()
        record["data"][0, 0] += alter == "pixel"
        record[official.labels_key] = record[official.labels_key][::-1]
        record[official.labels_key][0] ^= alter == "label"
        (root / official.folder / file).write_bytes(pickle.dumps(record))
    if alter:
        words = rf"{official.folder} does not have exactly the images .*data\.verify=false accepts"
        with pytest.raises(UserError, match=words):
            load(root, name)
    data = load(root, name, verify=not alter)
    assert len(data.train(64, seed=0).resident) == 200
    # CIFAR-100 is held in an order of its own: anybody's exact copy gives the same runs.
    same = name == "cifar100" and not alter
    assert holds(data, name) == (data.fingerprint == expected.fingerprint) == same


@pytest.fixture(scope="module")
def real():
    return load(REAL, "cifar10", pad=0)


@needs_real
def test_real_cifar10_equals_torchvisions(real):
    from torchvision.datasets import CIFAR10

    halves = ((True, real.train(64, seed=0).resident), (False, real.test(64).resident))
    for train, resident in halves:
        theirs = CIFAR10(REAL, train=train)
        assert np.array_equal(resident.images, theirs.data)
        assert resident.labels.tolist() == theirs.targets and real.classes == theirs.classes


@needs_real
def test_mean_and_deviation_are_those_of_the_real_training_images(real):
    pixels = real.train(64, seed=0).resident.images.double() / 255
    assert real.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), abs=1e-12)
    assert real.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), abs=1e-9)


def rewrite(**changes):
    """Replace entries of a record; None removes one."""

    def damage(path):
        record = pickle.loads(path.read_bytes()) | changes
        path.write_bytes(
            pickle.dumps({key: value for key, value in record.items() if value is not None})
        )

    return damage


ZEROS = np.zeros((40, 3072), np.uint8)
CONTENT = (
    r"does not hold data \(N, 3072\) and labels, N integers from 0 to 9: it is damaged or "
    r"not of CIFAR-10"
)
NAMES = r"batches\.meta does not hold 10 class names as label_names"
DAMAGE = {  # what is done to data_batch_2, or beside it, and the message
    "missing": (Path.unlink, r"data_batch_2 cannot be read or written \(No such file"),
    "empty": (lambda p: p.write_bytes(b""),
        r"data_batch_2 \(0 bytes\) is damaged.*it is empty.*Delete"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-5000]),
        "is damaged and cannot be read to its end"),
    "a web page": (lambda p: p.write_bytes(b"<html>404 not found</html>"),
        "is damaged and cannot be read"),
    "a list": (lambda p: p.write_bytes(pickle.dumps([1, 2])), "is damaged and cannot be read"),
    "no labels": (rewrite(labels=None), CONTENT),
    "keys of cifar100": (rewrite(labels=None, fine_labels=[0] * 40), CONTENT),
    "wrong shape": (rewrite(data=ZEROS[:, :-1]), CONTENT),
    "flat data": (rewrite(data=ZEROS.ravel()), CONTENT),
    "data in a list": (rewrite(data=[1, 2, 3]), CONTENT),
    "floats": (rewrite(data=ZEROS.astype(np.float32)), "asks for an array of type 'f4'"),
    "objects": (rewrite(data=ZEROS.astype(object)), "asks for an array of type 'O8'"),
    "too few labels": (rewrite(labels=[0] * 39), CONTENT),
    "labels as text": (rewrite(labels=["0"] * 40), CONTENT),
    "label too high": (rewrite(labels=[9] * 39 + [10]), CONTENT),
    "label below zero": (rewrite(labels=[0] * 39 + [-1]), CONTENT),
    "one image less": (rewrite(data=ZEROS[1:], labels=[0] * 39),
        r"holds 199 \+ 100 images in 10 classes; CIFAR-10 has "
        r"200 \+ 100 in 10: it is incomplete or another set"),
    "one class name": (lambda p: rewrite(label_names=["cat"])(p.with_name("batches.meta")), NAMES),
    "no class names": (lambda p: rewrite(label_names=None)(p.with_name("batches.meta")), NAMES),
    "a word of ten letters, no list": (
        lambda p: rewrite(label_names="automobile")(p.with_name("batches.meta")), NAMES),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message_that_names_the_file(small, kind):
    damage, message = DAMAGE[kind]
    folder = small("cifar10") / "cifar-10-batches-py"
    damage(folder / "data_batch_2")
    with pytest.raises(UserError, match=f"(?s){folder}.*{message}"):
        load(folder.parent, "cifar10", verify=False)


class Calls:
    """Pickles to a call of `function` with `arguments` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# what the message names, and a pickle that creates the file `marker` when `pickle.loads` reads it
ATTACKS = {
    "builtins.exec": lambda marker: pickle.dumps(
        {"data": Calls(exec, f"open({str(marker)!r}, 'w').close()")}
    ),
    f"{os.system.__module__}.system": lambda marker: pickle.dumps(
        {"data": Calls(os.system, f"touch {marker}")}
    ),
    "__builtin__.exec": lambda marker: pickle.dumps(
        Calls(exec, f"open({str(marker)!r}, 'w').close()"), protocol=0
    ),
    "os.system": lambda marker: f"(S'touch {marker}'\nios\nsystem\n.".encode(),
    # Of something allowed.
    "numpy.ndarray.tofile": lambda marker: b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "numpy.load": lambda marker: pickle.dumps(Calls(np.load, str(marker))),
}


@pytest.mark.parametrize("named", ATTACKS)
def test_malicious_pickles_are_refused_by_name_and_not_run(small, tmp_path, named):
    marker = tmp_path / "was-run"
    attack = ATTACKS[named](marker)
    if not named.startswith("numpy"):
        pickle.loads(attack)
        marker.unlink()  # it was created
    folder = small("cifar10") / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(attack)
    with pytest.raises(
        UserError,
        match=rf"test_batch asks for {named}, which no CIFAR file has.*nothing",
    ):
        load(folder.parent, "cifar10", verify=False)
    assert not marker.exists()
