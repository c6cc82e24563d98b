"""The preparation of mini-ImageNet from small copies of every layout, and what is no copy of it."""

import shutil

import pytest
from tiny import command

from lcm.data import mini_imagenet
from lcm.data.mini_imagenet import prepare
from lcm.errors import UserError

A, B, C = CLASSES = mini_imagenet.WNIDS[:3]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """3 classes of 5 + 1 images."""
    monkeypatch.setattr(mini_imagenet, "WNIDS", CLASSES)
    monkeypatch.setattr(mini_imagenet, "PER_CLASS", {"train": 5, "test": 1})


def image(wnid, number):
    return f"{wnid}{number:08}.jpg"


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def copy(root, place, numbers=range(1, 7)):
    """A copy with an image at place(wnid, number) for each class and number; no two are equal."""
    for wnid in CLASSES:
        for number in numbers:
            write(root / place(wnid, number), f"{wnid} {number}".encode())
    return root


def class_folders(root):
    return copy(root, lambda wnid, number: f"{wnid}/{image(wnid, number)}")


def few_shot(root):
    part = dict(zip(CLASSES, ("train", "val", "test"), strict=True))
    return copy(root, lambda wnid, number: f"{part[wnid]}/{wnid}/{image(wnid, number)}")


def one_folder(root):
    """Beside the lists, which are not read."""
    write(root / "train.csv")
    return copy(root, lambda wnid, number: f"images/{image(wnid, number)}")


def split_copy(root, test="test"):
    def place(wnid, number):
        return f"{'train' if number < 6 else test}/{wnid}/{image(wnid, number)}"

    return copy(root, place)


def contents(root):
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "layout", [class_folders, few_shot, one_folder, lambda root: one_folder(root) / "images"]
)
def test_a_copy_that_is_not_split_is_split_after_five_sixths(tmp_path, layout):
    source = layout(tmp_path / "copy")
    write(tmp_path / ".out.draft" / "left.jpg", b"by a killed process")
    (tmp_path / "out").mkdir()  # empty
    report = prepare(source, tmp_path / "out")
    assert "15 training and 3 test images (the first 500 of 600 of each class)" in report
    assert contents(tmp_path / "out") == contents(split_copy(tmp_path / "expected"))
    assert not (tmp_path / ".out.draft").exists()
    with pytest.raises(UserError, match=r"out is a file or holds files already: delete it"):
        prepare(tmp_path / "missing", tmp_path / "out")  # two copies would be one set of both


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_split_copy_keeps_its_split(tmp_path, test):
    source = split_copy(tmp_path / "c", test)
    # not the first-500 rule
    shutil.move(source / test / A / image(A, 6), source / "train" / A / image(A, 6))
    shutil.move(source / "train" / A / image(A, 2), source / test / A / image(A, 2))
    ended = command(tmp_path, source, tmp_path / "out", script="scripts/prepare_mini_imagenet.py")
    assert ended.code == 0 and "(the copy's own split)" in ended.out, ended
    made = contents(tmp_path / "out")
    assert made == {path.replace("val/", "test/"): data for path, data in contents(source).items()}


def test_a_partial_copy_needs_permission_and_unused_folders_are_named(tmp_path):
    """Of ImageNet's own names number 10 comes after 9."""
    source = copy(tmp_path / "b", lambda wnid, i: f"{wnid}/{wnid}_{i}.JPEG", range(9, 12))
    (source / "masks").mkdir()
    with pytest.raises(UserError, match=r"--allow-partial(.|\n)*2 \+ 1 training \+ test images"):
        prepare(source, tmp_path / "out")
    report = prepare(source, tmp_path / "out", allow_partial=True)
    assert "6 training and 3 test images" in report and report.endswith("NOT USED: masks)")
    assert (tmp_path / "out" / "test" / A / f"{A}_11.JPEG").exists()


ONE = image(A, 1)
# how a good copy is damaged, its layout, the message
BAD = {
    "no such folder": (shutil.rmtree, class_folders,
        ["No such file or directory", "copy", "Give the folder"]),
    "an archive": (lambda r: (shutil.rmtree(r), write(r)), class_folders,
        ["Not a directory", "copy", "unpack an archive"]),
    "few-shot pickles": (lambda r: (shutil.rmtree(r), write(r / "cache.pkl")), class_folders,
        ["holds no images of mini-ImageNet", "few-shot pickles cannot be used"]),
    "images in images/ of other names": (
        lambda r: (shutil.rmtree(r), write(r / "images" / "a.jpg")), class_folders,
            ["holds no images of mini-ImageNet"]),
    "a missing class": (lambda r: shutil.rmtree(r / C), class_folders, [f"{C}: 0 + 0 training"]),
    "wrong counts": (
        lambda r: ((r / A / ONE).unlink(), write(r / C / image(C, 7))), class_folders,
        [f"{A}: 4 + 1", f"{C}: 5 + 2 training"],
    ),
    "another class of ImageNet": (
        lambda r: shutil.copytree(r / A, r / "n09999999"), class_folders,
            ["n09999999 is not a class of mini-ImageNet"],
    ),
    "a broken link": (
        lambda r: ((r / A / ONE).unlink(), (r / A / ONE).symlink_to("gone")), class_folders,
            ["No such file or directory", ONE, "a place with room"]
    ),
    "no test": (lambda r: shutil.rmtree(r / "test"), split_copy, ["holds train. Expected are"]),
    "no train": (lambda r: (r / "train").rename(r / "val"), split_copy,
        ["holds val, test. Expected are"]),
    "three splits": (lambda r: shutil.copytree(r / "test", r / "val"), split_copy,
        ["holds train, val, test. Expected are"]),
    "an image in both splits": (
        lambda r: shutil.copy(r / "train" / A / ONE, r / "test" / A / ONE), split_copy,
            [f"{A}: 5 + 2 training + test"],
    ),
    "a file at the destination": (lambda r: write(r.parent / "out"), class_folders,
        ["out is a file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_nothing(name, tmp_path):
    damage, layout, words = BAD[name]
    root = layout(tmp_path / "copy")
    damage(root)
    with pytest.raises(UserError) as caught:
        prepare(root, tmp_path / "out")
    assert all(part in str(caught.value) for part in words), str(caught.value)
    assert not (tmp_path / "out").is_dir() and not list(tmp_path.glob(".*draft"))
