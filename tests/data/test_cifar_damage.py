"""Damaged and malicious CIFAR files: one message that names the file, and nothing in a pickle is run."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_cifar import class_folders, holds, load, pack, records

from lcm.data import Cifar
from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.errors import UserError


def rewrite(path, **changes):
    """Replace entries of a record; None removes one."""
    record = pickle.loads(path.read_bytes())
    record.update(changes)
    path.write_bytes(pickle.dumps({key: value for key, value in record.items() if value is not None}))


def relabel(old, new):
    def damage(path):
        labels = pickle.loads(path.read_bytes())["labels"]
        labels[labels.index(old)] = new
        rewrite(path, labels=labels)

    return damage


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"C") + len(data) // 2] ^= 1  # in the pixels
    path.write_bytes(bytes(data))


def shorten(path):
    record = pickle.loads(path.read_bytes())
    rewrite(path, data=record["data"][:-1], labels=record["labels"][:-1])


ZEROS = np.zeros((40, 3072), np.uint8)
DAMAGE = {  # what is done to data_batch_2, the message, whether verify=false lets it pass
    "missing": (Path.unlink, "cannot be read .*No such file.*consists of data_batch_1, data_batch_2", False),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "cannot be read .*Is a directory", False),
    "empty": (lambda p: p.write_bytes(b""), r"data_batch_2 \(0 bytes\) is damaged.*it is empty.*Delete", False),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-5000]), "is damaged, it cannot be read to its end", False),
    "a web page": (lambda p: p.write_bytes(b"<html>404 not found</html>"), "is damaged, it cannot be read", False),
    "zeros": (lambda p: p.write_bytes(bytes(1000)), "is damaged, it cannot be read", False),
    "one flipped bit": (flip, "not the official file.*\n.*not its images and labels: it is damaged or altered", True),
    "a list": (lambda p: p.write_bytes(pickle.dumps([1, 2])), "holds a list where a dictionary is expected", False),
    "no labels": (lambda p: rewrite(p, labels=None), "should hold data and labels, and holds batch_label, data", False),
    "cifar100's keys": (
        lambda p: rewrite(p, labels=None, fine_labels=[0] * 40),
        "should hold data and labels, and holds .*fine_labels. It is damaged or not of CIFAR-10",
        False,
    ),
    "wrong shape": (
        lambda p: rewrite(p, data=ZEROS[:, :-1]),
        r"shape \(images, 3072\) and is shape \(40, 3071\)",
        False,
    ),
    "flat data": (lambda p: rewrite(p, data=ZEROS.ravel()), r"is shape \(122880,\)", False),
    "data in a list": (lambda p: rewrite(p, data=[1, 2, 3]), "is a list", False),
    "floats": (lambda p: rewrite(p, data=ZEROS.astype(np.float32)), "asks for an array of type 'f4'", False),
    "objects": (lambda p: rewrite(p, data=ZEROS.astype(object)), "asks for an array of type 'O8'", False),
    "too few labels": (lambda p: rewrite(p, labels=[0] * 39), "should be a list of 40 whole numbers", False),
    "labels as text": (lambda p: rewrite(p, labels=["0"] * 40), "should be a list of 40 whole numbers", False),
    "label too high": (relabel(3, 10), r"label 10 is outside 0\.\.9", False),
    "label below zero": (relabel(3, -1), r"label -1 is outside 0\.\.9", False),
    "one wrong label": (
        relabel(3, 4),
        r"holds (19|21) training images of class [34] \(class0[34]\); .* has 20 of each",
        False,
    ),
    "one image less": (shorten, "holds 199 training images; CIFAR-10 has 200. The copy is incomplete", False),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message_that_names_the_file(small, kind):
    damage, message, passes = DAMAGE[kind]
    folder = small("cifar10") / "cifar-10-batches-py"
    damage(folder / "data_batch_2")
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        load(folder.parent, "cifar10")
    assert str(folder) in str(error.value)
    if passes:
        load(folder.parent, "cifar10", verify=False)
    else:
        with pytest.raises(UserError, match=f"(?s){message}"):
            load(folder.parent, "cifar10", verify=False)


@pytest.mark.parametrize("change", [{"label_names": ["cat"]}, {"label_names": None}, {"label_names": "airplane"}])
def test_wrong_class_names_are_refused(small, change):
    folder = small("cifar10") / "cifar-10-batches-py"
    rewrite(folder / "batches.meta", **change)
    with pytest.raises(UserError, match=r"batches\.meta does not hold 10 class names as label_names"):
        load(folder.parent, "cifar10")


def test_a_damaged_archive_is_refused_unless_it_is_meant(small, monkeypatch):
    root = small("cifar10")
    archive = pack(root, "cifar10", monkeypatch)
    data = archive.read_bytes()
    archive.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz .* is not the official archive .*Delete it"):
        load(root, "cifar10")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is damaged"):
        load(root, "cifar10", verify=False)
    assert {path.name for path in root.iterdir()} == {archive.name, f".{archive.name}.lock"}
    with tarfile.open(archive, "w:gz") as tar:  # another archive of the same files
        for file, record in records("cifar10").items():
            (root / file).write_bytes(pickle.dumps(record))
            tar.add(root / file, f"cifar-10-batches-py/{file}")
            (root / file).unlink()
    assert holds(load(root, "cifar10", verify=False), "cifar10")


FOLDER_DAMAGE = {
    "nine classes": (lambda r: shutil.rmtree(r / "train" / "class09"), r"train has 9 class folders; CIFAR-10 has 10"),
    "no test": (lambda r: shutil.rmtree(r / "test"), r"test has 0 class folders; CIFAR-10 has 10"),
    "another class": (
        lambda r: (r / "test" / "class09").rename(r / "test" / "cat"),
        "class folder 'cat' is in only one of",
    ),
    "one image less": (lambda r: next((r / "train" / "class03").iterdir()).unlink(), "holds 199 training images"),
    "an image elsewhere": (
        lambda r: next((r / "train" / "class03").iterdir()).rename(r / "train" / "class04" / "x.png"),
        r"holds 19 training images of class 3 \(class03\)",
    ),
    "a text": (lambda r: (r / "train" / "class03" / "a.txt").write_text("?"), r"a\.txt cannot be read as an image"),
    "an empty image": (
        lambda r: next((r / "train" / "class03").iterdir()).write_bytes(b""),
        "cannot be read as an image",
    ),
    "a large image": (
        lambda r: Image.new("RGB", (64, 48)).save(r / "test" / "class00" / "large.png"),
        r"large\.png has 64x48 pixels; images of CIFAR have 32x32",
    ),
    "swapped labels": (
        lambda r: [
            (r / p).rename(r / q)
            for p, q in [("train/class01", "x"), ("train/class02", "train/class01"), ("x", "train/class02")]
        ],
        "not exactly its images and labels",
    ),
}


@pytest.mark.parametrize("kind", FOLDER_DAMAGE)
def test_damaged_class_folders_are_one_message(small, tmp_path, kind):
    damage, message = FOLDER_DAMAGE[kind]
    small("cifar10")
    root = tmp_path / "png"
    class_folders(root, "cifar10")
    damage(root)
    with pytest.raises(UserError, match=message) as error:
        load(root, "cifar10")
    assert str(root) in str(error.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("hidden", ["", "cifar-10-batches-py", "cifar-10-batches-py/test_batch"])
def test_what_may_not_be_read_is_one_message(small, hidden):
    root = small("cifar10")
    (root / hidden).chmod(0)
    try:
        with pytest.raises(UserError, match=r"may not be read|cannot be read \(Permission denied\)"):
            load(root, "cifar10")
    finally:
        (root / hidden).chmod(0o755)


def test_a_class_refuses_facts_that_are_not_its_own(tmp_path):
    with pytest.raises(UserError, match=r"data\.name=mnist: this class reads cifar10 and cifar100"):
        Cifar("mnist", 10, root=tmp_path)
    with pytest.raises(UserError, match=r"data\.num_classes=10: cifar100 has num_classes=100"):
        Cifar("cifar100", 10, root=tmp_path)


# ------------------------------------------------------------------------------------------------- malicious pickles


class Calls:
    """Pickles to a call of `function` with `arguments` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Pickles that run something; each creates `marker` when it is read the ordinary way."""
    touch = f"open({str(marker)!r}, 'w').close()"
    yield "exec", "builtins.exec", pickle.dumps({"data": Calls(exec, touch)})
    yield "os.system", f"{os.system.__module__}.system", pickle.dumps({"data": Calls(os.system, f"touch {marker}")})
    yield "old protocol", "__builtin__.exec", pickle.dumps(Calls(exec, touch), protocol=0)
    yield "instance", "os.system", f"(S'touch {marker}'\nios\nsystem\n.".encode()
    yield "dotted", "numpy.ndarray.tofile", b""
    yield "numpy.load", "numpy.load", pickle.dumps(Calls(np.load, str(marker)))


@pytest.mark.parametrize("index", range(6))
def test_malicious_pickles_are_refused_by_name_and_not_run(small, tmp_path, index):
    marker = tmp_path / "was-run"
    kind, named, attack = list(attacks(marker))[index]
    if kind == "dotted":  # an attribute of something allowed
        attack = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    elif kind != "numpy.load":
        pickle.loads(attack)
        assert marker.exists()  # the attack works where nobody looks
        marker.unlink()
    folder = small("cifar10") / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(attack)
    for verify in (True, False):
        with pytest.raises(
            UserError, match=rf"test_batch asks for {named}, which the files of CIFAR never hold.*nothing"
        ):
            load(folder.parent, "cifar10", verify=verify)
    assert not marker.exists()


def test_the_reader_survives_random_damage():
    """Every flip of a small file is read or refused; nothing else escapes."""
    good = pickle.dumps({"labels": [1, 2], "data": np.arange(32, dtype=np.uint8).reshape(2, 16)}, protocol=2)
    random = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        data = bytearray(good)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            data[at] = random.integers(0, 256)
        try:
            outcomes[isinstance(read_cifar_pickle(bytes(data), Path("file")), dict)] += 1
        except UserError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100
