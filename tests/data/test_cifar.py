"""CIFAR in every layout in use: small files, and the real ones.

Tests on the real files need LCM_TEST_DATA, a folder with cifar-10-batches-py (official), and for the slow one cifar-100-png
(class folders).
"""

import functools
import http.server
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cifar import class_folders, holds, load, pack, records

from lcm.data import cifar
from lcm.errors import UserError

REAL = os.environ.get("LCM_TEST_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="needs LCM_TEST_DATA, a folder with the real CIFAR files"
)


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_unpacked_folder(small, name, protocol):
    root = small(name, protocol)
    data = load(root, name)
    assert (
        holds(data, name) and data.classes[3] == "class03" and len(data.classes) == data.num_classes
    )
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
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        mirror = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        try:
            data = load(
                tmp_path / "new",
                name,
                download=True,
                places=["http://127.0.0.1:9/" + archive.name, mirror],
            )
        finally:
            server.shutdown()
            thread.join()
    assert holds(data, name)
    left = {path.name for path in (tmp_path / "new").iterdir() if not path.name.endswith(".lock")}
    assert left == {archive.name, cifar.OFFICIAL[name].folder}


def test_class_folders(small, name, tmp_path):
    official = load(small(name), name)
    class_folders(tmp_path / "png", name)
    (tmp_path / "png" / "train" / "class00" / ".DS_Store").write_bytes(b"hidden files are ignored")
    data = load(
        tmp_path / "png", name
    )  # verified: the same images and labels, in the order of classes
    assert data.classes == official.classes
    ours, theirs = data.train(64, seed=0).resident, official.train(64, seed=0).resident
    order = torch.from_numpy(np.argsort(theirs.labels.numpy(), kind="stable"))
    assert torch.equal(ours.images, theirs.images[order])
    assert torch.equal(ours.labels, theirs.labels[order])
    # another order is another set to train on, but for CIFAR-100, which has an order of its own
    assert (data.fingerprint == official.fingerprint) == (name == "cifar100")


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
    with pytest.raises(
        UserError, match=r"has not exactly the images and labels of CIFAR-10.*copies as JPEG"
    ):
        load(tmp_path / "jpg", "cifar10")
    assert len(load(tmp_path / "jpg", "cifar10", verify=False).test(64).resident) == 100


def test_a_missing_set_says_what_was_looked_for(tmp_path, name):
    official = cifar.OFFICIAL[name]
    with pytest.raises(UserError) as error:
        load(tmp_path, name)
    for part in (
        str(tmp_path),
        official.folder,
        "train/<class>",
        official.archive,
        "data.root=",
        "data.download=true",
    ):
        assert part in str(error.value)


def reordered(root, name, alter=0):
    """The training files of a copy in reversed order; `alter` is added to one pixel."""
    official, train = cifar.OFFICIAL[name], records(name)
    for file in official.train:
        record = train[file]
        record["data"] = record["data"][::-1].copy()
        record["data"][0, 0] += alter
        record[official.labels_key] = record[official.labels_key][::-1]
        (root / official.folder / file).write_bytes(pickle.dumps(record))


def test_a_copy_in_another_order_has_the_official_content_and_is_verified(small, name):
    root = small(name)
    official = load(root, name)
    reordered(root, name)
    data = load(root, name)
    assert len(data.train(64, seed=0).resident) == 200
    if name == "cifar100":  # held in an order of its own: anybody's exact copy gives the same runs
        assert holds(data, name) and data.fingerprint == official.fingerprint
    else:
        assert not holds(data, name) and data.fingerprint != official.fingerprint


def test_a_copy_with_one_other_pixel_is_refused(small, name):
    root, official = small(name), cifar.OFFICIAL[name]
    reordered(root, name, alter=1)
    with pytest.raises(UserError, match=f"{official.folder} has not exactly the images") as error:
        load(root, name)
    assert "data.verify=false accepts" in str(error.value)
    assert len(load(root, name, verify=False).train(64, seed=0).resident) == 200


def another_set(root):
    """data/train and data/test of another set beside CIFAR: three classes of two images."""
    for half in ("train", "test"):
        for i in range(6):
            (root / half / f"animal{i % 3}").mkdir(parents=True, exist_ok=True)
            (root / half / f"animal{i % 3}" / f"{i}.png").write_bytes(b"another set")


def test_a_doubled_folder_is_read(small, name):
    """What unpacking an archive into a folder of its name makes; also one level elsewhere."""
    root, folder = small(name), cifar.OFFICIAL[name].folder
    for place in (folder, "kaggle"):
        target = root / "moved" / place
        target.mkdir(parents=True)
        (root / folder).rename(target / folder)
        assert holds(load(root / "moved", name), name)
        (target / folder).rename(root / folder)
        shutil.rmtree(root / "moved")


def test_folders_of_another_set_are_passed_over(small, name, monkeypatch):
    root = small(name)
    archive = pack(root, name, monkeypatch)
    another_set(root)
    assert holds(load(root, name), name)
    archive.unlink()
    shutil.rmtree(root / cifar.OFFICIAL[name].folder)
    with pytest.raises(UserError, match=r"is not under .* 6 \+ 6 images in 3 classes.*another set"):
        load(root, name)


@pytest.fixture(scope="module")
def real():
    return load(REAL, "cifar10", pad=0)


@needs_real
def test_real_cifar10_equals_torchvisions(real):
    from torchvision.datasets import CIFAR10

    for train, resident in (
        (True, real.train(64, seed=0).resident),
        (False, real.test(64).resident),
    ):
        theirs = CIFAR10(REAL, train=train)
        assert (
            np.array_equal(resident.images, theirs.data)
            and resident.labels.tolist() == theirs.targets
        )
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
    sums = [
        (images.mean((0, 2, 3)), images.square().mean((0, 2, 3))) for images in prepared(batches)
    ]
    mean, square = (torch.stack(part).double().mean(0) for part in zip(*sums, strict=True))
    assert mean.abs().max() < 1e-5 and (square - 1).abs().max() < 1e-5


def prepared(batches):
    return (batches.prepare(raw, "cpu")[0] for raw in batches.iterate(0))


@needs_real
@pytest.mark.slow  # decodes 60,000 files
@pytest.mark.skipif(not Path(REAL or "", "cifar-100-png").is_dir(), reason="needs cifar-100-png")
def test_real_class_folders_of_cifar100():
    data = load(Path(REAL, "cifar-100-png"), "cifar100")  # verified: the official images and labels
    planes = data._train[0].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(planes.mean(0), abs=1e-9) and data.std == pytest.approx(
        planes.std(0), abs=1e-9
    )
