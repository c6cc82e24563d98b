"""Digits and CIFAR: every layout that users have, and one message for every kind of damage.

Small files in the official layout stand in for CIFAR. Tests on the real files need LCM_TEST_DATA, a folder with
cifar-10-batches-py (official), and for the slow one cifar-100-png (class folders).
"""

import functools
import hashlib
import http.server
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lcm.data
from lcm.data import Cifar, Digits, cifar
from lcm.data.cifar_pickle import read_cifar_pickle
from lcm.errors import UserError

REAL = os.environ.get("LCM_TEST_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="needs LCM_TEST_DATA, a folder with the real CIFAR files")

# ------------------------------------------------------------------------------------------------------------ digits


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    digits = Digits()
    ours = {}
    for batches in (digits.train(2000, seed=0), digits.test(2000)):
        for image, label in zip(batches.resident.images, batches.resident.labels, strict=True):
            ours.setdefault((image[::4, ::4, 0].numpy().tobytes(), int(label)), image)
    grey = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    assert {(image.tobytes(), int(label)) for image, label in zip(grey, theirs.target, strict=True)} == set(ours)
    image = next(iter(ours.values()))
    assert image.shape == (32, 32, 3) and torch.equal(image[..., 0], image[..., 2])
    assert torch.equal(image, image[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_digits_have_a_stratified_split_that_no_seed_changes():
    digits = Digits()
    train, test = digits.train(64, seed=1).resident, digits.test(64).resident
    assert (len(train), len(test), digits.num_classes) == (1442, 355, 10) and len(digits.classes) == 10
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert (abs(share - 0.2) < 0.005).all()
    assert torch.equal(digits.train(64, seed=2).resident.images, train.images)
    assert digits.fingerprint == "85ee40c7" + Digits().fingerprint[8:] and len(digits.fingerprint) == 64
    values = train.images.double() / 255
    assert values.mean().item() == pytest.approx(digits.mean[0]) and values.std().item() == pytest.approx(
        digits.std[0], rel=1e-5
    )


def test_start_up_imports_neither_scikit_learn_nor_torchvision():
    code = (
        "import sys; from lcm.data import Digits; batches = Digits().train(64, 0); batches.prepare(batches.epoch(0)[0], 'cpu');"
        "print([name for name in ('sklearn', 'torchvision', 'scipy', 'pandas', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "content", [None, b"", b"1,2,3\n", b"\x1f\x8b\x08\x00"], ids=["missing", "empty", "text", "cut"]
)
def test_damaged_digits_are_one_message(tmp_path, content):
    if content is not None:
        (tmp_path / "digits.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"digits\.csv\.gz is missing or damaged .*data\.root=null"):
        Digits(root=tmp_path)


def test_digits_of_another_table_are_refused(tmp_path):
    import gzip

    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(b"1,2,3\n" * 1797))
    with pytest.raises(UserError, match="does not hold the 1,797 digits"):
        Digits(root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 12}, r"data\.num_classes=12: digits has num_classes=10"),
        ({"image_size": 28}, r"data\.image_size=28: digits has image_size=32"),
        ({"pad": 32}, r"data\.pad=32: from 0 \(no crop\) to 31 pixels"),
        ({"pad": -1}, r"data\.pad=-1"),
        ({"workers": -1}, r"data\.workers=-1"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Digits(**change)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_the_yaml_has_exactly_the_arguments_of_its_class(name):
    import inspect

    import yaml

    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "data" / f"{name}.yaml").read_text())
    target = getattr(lcm.data, config.pop("_target_").rpartition(".")[2])
    config.pop("_convert_", None)
    assert set(config) == set(inspect.signature(target).parameters)
    assert config["name"] == name and config["num_classes"] == (100 if name == "cifar100" else 10)


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match=r"'lcm\.data' has no attribute 'Mnist'"):
        lcm.data.Mnist  # noqa: B018


# ------------------------------------------------------------------------------------------------------- small CIFAR

CLASSES = {name: cifar.OFFICIAL[name].num_classes for name in cifar.OFFICIAL}


def records(name):
    """{file: record} in the official layout: 20 images of each class for cifar10, 2 for cifar100; half as many to test."""
    official = cifar.OFFICIAL[name]
    random = np.random.default_rng(official.num_classes)
    files = {}
    for part, count in ((official.train, 200), (official.test, 100)):
        labels = random.permutation(np.arange(count) % official.num_classes)
        for file, chosen in zip(part, np.array_split(labels, len(part)), strict=True):
            files[file] = {
                "batch_label": f"{file} of {name}",
                official.labels_key: chosen.tolist(),
                "data": random.integers(0, 256, (len(chosen), 3072), dtype=np.uint8),
                "filenames": [f"{label}_{i}.png" for i, label in enumerate(chosen.tolist())],
            }
    names = [f"class{i:02}" for i in range(official.num_classes)]
    files[next(iter(official.meta))] = {official.names_key: names, "num_vis": 3072}
    return files


def arrays(name, part):
    """(images (N, 32, 32, 3), labels (N,)) of records(name), put together in the plainest way."""
    official, files = cifar.OFFICIAL[name], records(name)
    chosen = [files[file] for file in getattr(official, part)]
    images = np.concatenate([r["data"] for r in chosen]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.concatenate([r[official.labels_key] for r in chosen])


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.fixture
def small(tmp_path, monkeypatch):
    """small(name) -> a root with the unpacked folder; the sums of its files become the official ones."""

    def build(name, protocol=4):
        official = cifar.OFFICIAL[name]
        folder = tmp_path / "root" / official.folder
        folder.mkdir(parents=True)
        for file, record in records(name).items():
            (folder / file).write_bytes(pickle.dumps(record, protocol=protocol))
        sums = {
            part: {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in getattr(official, part)}
            for part in ("train", "test", "meta")
        }
        contents = cifar._contents(arrays(name, "train"), arrays(name, "test"))
        fake = official._replace(num_train=200, num_test=100, contents=contents, **sums)
        monkeypatch.setitem(cifar.OFFICIAL, name, fake)
        return tmp_path / "root"

    return build


def pack(root, name, monkeypatch):
    """Replace the unpacked folder by the archive, which becomes the official one."""
    official = cifar.OFFICIAL[name]
    archive = root / official.archive
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(root / official.folder, official.folder)
    shutil.rmtree(root / official.folder)
    sums = {"archive_md5": hashlib.md5(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(cifar.OFFICIAL, name, official._replace(**sums))
    return archive


def class_folders(root, name, kind="png"):
    classes = [f"class{i:02}" for i in range(CLASSES[name])]
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(*arrays(name, part), strict=True)):
            folder = root / part / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{i:04}.{kind}")


def load(root, name, **options):
    return Cifar(name, CLASSES[name], root=root, **{"download": False, **options})


def holds(data, name):
    """Whether the data set is exactly records(name), in order."""
    train, test = data.train(64, seed=0).resident, data.test(64).resident
    return all(
        np.array_equal(resident.images, images) and np.array_equal(resident.labels, labels)
        for resident, (images, labels) in ((train, arrays(name, "train")), (test, arrays(name, "test")))
    )


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_unpacked_folder(small, name, protocol):
    root = small(name, protocol)
    data = load(root, name)
    assert holds(data, name) and data.classes[3] == "class03" and len(data.classes) == data.num_classes == CLASSES[name]
    inside = load(root / cifar.OFFICIAL[name].folder, name)
    assert holds(inside, name) and inside.fingerprint == data.fingerprint


def test_an_archive(small, name, monkeypatch):
    root = small(name)
    archive = pack(root, name, monkeypatch)
    assert holds(load(root, name), name)
    archive.unlink()  # unpacked for good
    assert holds(load(root, name), name)


def test_a_download(small, name, monkeypatch, tmp_path):
    archive = pack(small(name), name, monkeypatch)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        place = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        try:
            data = load(tmp_path / "new", name, download=True, places=["http://127.0.0.1:9/" + archive.name, place])
        finally:
            server.shutdown()
            thread.join()
    assert holds(data, name)
    left = {path.name for path in (tmp_path / "new").iterdir() if not path.name.endswith(".lock")}
    assert left == {archive.name, cifar.OFFICIAL[name].folder}


def test_class_folders(small, name, tmp_path):
    official = load(small(name), name)
    class_folders(tmp_path / "png", name)
    (tmp_path / "png" / "train" / "class00" / ".DS_Store").write_bytes(b"hidden files are left alone")
    data = load(tmp_path / "png", name)  # verified: the same images and labels, in the order of classes
    assert data.classes == official.classes
    ours, theirs = data.train(64, seed=0).resident, official.train(64, seed=0).resident
    order = torch.from_numpy(np.argsort(theirs.labels.numpy(), kind="stable"))
    assert torch.equal(ours.images, theirs.images[order]) and torch.equal(ours.labels, theirs.labels[order])
    assert data.fingerprint != official.fingerprint  # another order is another set to train on


def test_numbered_class_folders_are_in_the_order_of_numbers(small, tmp_path):
    small("cifar100")
    class_folders(tmp_path / "png", "cifar100")
    for part in ("train", "test"):
        for i in range(100):
            (tmp_path / "png" / part / f"class{i:02}").rename(tmp_path / "png" / part / str(i))
    assert load(tmp_path / "png", "cifar100").classes == [str(i) for i in range(100)]


def test_jpeg_copies_need_verify_false(small, tmp_path):
    small("cifar10")
    class_folders(tmp_path / "jpg", "cifar10", "jpg")
    with pytest.raises(UserError, match=r"not exactly its images and labels \(copies as JPEG never have\)"):
        load(tmp_path / "jpg", "cifar10")
    assert len(load(tmp_path / "jpg", "cifar10", verify=False).test(64).resident) == 100


def test_a_missing_set_says_what_was_looked_for(tmp_path, name):
    official = cifar.OFFICIAL[name]
    with pytest.raises(UserError) as error:
        load(tmp_path, name)
    for part in (str(tmp_path), official.folder, "train/<class>", official.archive, "data.root=", "data.download=true"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"could not be downloaded:\n  http://127\.0\.0\.1:9/x: .*refused"):
        load(tmp_path, name, download=True, places=["http://127.0.0.1:9/x"])


def test_an_unofficial_copy_in_another_order(small, name):
    root = small(name)
    official = cifar.OFFICIAL[name]
    train = records(name)
    for file in official.train:
        record = train[file]
        record["data"], record[official.labels_key] = record["data"][::-1].copy(), record[official.labels_key][::-1]
        (root / official.folder / file).write_bytes(pickle.dumps(record))
    with pytest.raises(UserError) as error:
        load(root, name)
    message = str(error.value)
    for file, md5 in official.train.items():
        assert f"{official.folder}/{file} is not the official file: its md5 is " in message and md5 in message
    assert (
        f"holds exactly the images and labels of {official.title}" in message and "data.verify=false accepts" in message
    )
    assert str(root / official.folder / next(iter(official.test))) not in message  # that one is the official file
    data = load(root, name, verify=False)
    assert not holds(data, name) and len(data.train(64, seed=0).resident) == 200


# -------------------------------------------------------------------------------------------------------- the damage


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


# -------------------------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def real():
    return Cifar("cifar10", 10, root=REAL, pad=0)


@needs_real
def test_real_cifar10_equals_torchvisions(real):
    from torchvision.datasets import CIFAR10

    for train, resident in ((True, real.train(64, seed=0).resident), (False, real.test(64).resident)):
        theirs = CIFAR10(REAL, train=train)
        assert np.array_equal(resident.images, theirs.data) and resident.labels.tolist() == theirs.targets
        assert real.classes == theirs.classes
    assert cifar._contents(real._train, real._test) == cifar.OFFICIAL["cifar10"].contents


@needs_real
def test_mean_and_deviation_are_those_of_the_real_training_images(real):
    planes = real._train[0].reshape(-1, 3)
    counts = np.array([np.bincount(planes[:, channel], minlength=256) for channel in range(3)])
    levels = np.arange(256) / 255
    mean = counts @ levels / len(planes)
    assert real.mean == pytest.approx(mean, abs=1e-12)
    assert real.std == pytest.approx(np.sqrt(counts @ levels**2 / len(planes) - mean**2), abs=1e-9)
    batches = real.train(1000, seed=0)  # pad=0: every pixel of every image comes once
    sums = [(images.mean((0, 2, 3)), images.square().mean((0, 2, 3))) for images in prepared(batches)]
    mean, square = (torch.stack(part).double().mean(0) for part in zip(*sums, strict=True))
    assert mean.abs().max() < 1e-5 and (square - 1).abs().max() < 1e-5


def prepared(batches):
    return (batches.prepare(raw, "cpu")[0] for raw in batches.iterate(0))


@needs_real
@pytest.mark.slow  # decodes 60,000 files
@pytest.mark.skipif(not Path(REAL or "", "cifar-100-png").is_dir(), reason="needs cifar-100-png")
def test_real_class_folders_of_cifar100():
    data = Cifar("cifar100", 100, root=Path(REAL, "cifar-100-png"))  # verified: the official images and labels
    planes = data._train[0].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(planes.mean(0), abs=1e-9) and data.std == pytest.approx(planes.std(0), abs=1e-9)
