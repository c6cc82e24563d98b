"""Damaged and malicious CIFAR files: one message that names the file; no code in a pickle runs."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_cifar import holds, load, pack, records

from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.errors import UserError


def rewrite(**changes):
    """Replace entries of a record; None removes one."""

    def damage(path):
        record = pickle.loads(path.read_bytes()) | changes
        path.write_bytes(
            pickle.dumps({key: value for key, value in record.items() if value is not None})
        )

    return damage


def relabel(old, new):
    def damage(path):
        labels = pickle.loads(path.read_bytes())["labels"]
        labels[labels.index(old)] = new
        rewrite(labels=labels)(path)

    return damage


def shorten(path):
    record = pickle.loads(path.read_bytes())
    rewrite(data=record["data"][:-1], labels=record["labels"][:-1])(path)


ZEROS = np.zeros((40, 3072), np.uint8)
CONTENT = (
    r"does not hold data \(N, 3072\) and labels, N integers from 0 to 9: it is damaged or "
    r"not of CIFAR-10"
)
DAMAGE = {  # what is done to data_batch_2, and the message
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
    "label too high": (relabel(3, 10), CONTENT),
    "label below zero": (relabel(3, -1), CONTENT),
    "one image less": (shorten, r"holds 199 \+ 100 images in 10 classes; CIFAR-10 has "
                                r"200 \+ 100 in 10: it is incomplete or another set"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_message_that_names_the_file(small, kind):
    damage, message = DAMAGE[kind]
    folder = small("cifar10") / "cifar-10-batches-py"
    damage(folder / "data_batch_2")
    with pytest.raises(UserError, match=f"(?s){folder}.*{message}"):
        load(folder.parent, "cifar10", verify=False)


@pytest.mark.parametrize("names", [["cat"], None, "airplane"])
def test_wrong_class_names_are_refused(small, names):
    folder = small("cifar10") / "cifar-10-batches-py"
    rewrite(label_names=names)(folder / "batches.meta")
    with pytest.raises(
        UserError, match=r"batches\.meta does not hold 10 class names as label_names"
    ):
        load(folder.parent, "cifar10")


def test_an_archive_is_judged_by_its_content(small, monkeypatch):
    root = small("cifar10")
    archive = pack(root, "cifar10", monkeypatch)
    data = archive.read_bytes()
    archive.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is damaged"):
        load(root, "cifar10")
    assert {path.name for path in root.iterdir()} == {archive.name, f".{archive.name}.lock"}
    with tarfile.open(archive, "w:gz") as tar:  # another archive of the same files
        for file, record in records("cifar10").items():
            (root / file).write_bytes(pickle.dumps(record))
            tar.add(root / file, f"cifar-10-batches-py/{file}")
            (root / file).unlink()
    assert holds(load(root, "cifar10"), "cifar10")


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
    "numpy.ndarray.tofile": lambda marker: (
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    ),  # of something allowed
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


def test_the_reader_survives_random_damage(tmp_path):
    """Every flip of a small file is read or refused; nothing else escapes."""
    record = {"labels": [1, 2], "data": np.arange(32, dtype=np.uint8).reshape(2, 16)}
    good = pickle.dumps(record)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = bytearray(good)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            data[at] = random.integers(0, 256)
        (tmp_path / "file").write_bytes(data)
        try:
            assert isinstance(read_cifar_pickle(tmp_path / "file"), dict)
        except UserError:
            refused += 1
    assert 30 < refused < 470
