"""All problems of a copy of mini-ImageNet are named, and nothing is left then."""

import shutil
from pathlib import Path

import pytest
from mini_copies import (
    A,
    B,
    C,
    class_folders,
    imagenet,
    listed,
    lists,
    picture,
    split_copy,
    write,
)

from lcm.data.mini_imagenet import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")


def with_lists(change=lambda folder: None, numbers=range(1, 7)):
    def damage(root):
        folder = lists(root.parent / "lists", numbers)
        change(folder)
        return {"lists": folder}

    return damage


def append(file, line):
    return with_lists(
        lambda folder: (folder / file).write_text((folder / file).read_text() + line + "\n")
    )


def empty(root):
    root.mkdir()
    return root


one = listed(A, 1)
# how a good copy is damaged (a dict that it returns replaces arguments of `prepare`), its layout,
# the message
BAD = {
    "no such folder": (lambda r: {"source": r / "missing"}, class_folders,
        ["missing is not a folder"]),
    "an archive": (lambda r: {"source": Path(__file__)}, class_folders,
        ["is not a folder", "unpack an archive"]),
    "few-shot pickles": (lambda r: write(r / "cache.pkl", b""), empty,
        ["no class folders", "it holds cache.pkl"]),
    "no lists": (lambda r: {"lists": r / "no"}, class_folders,
        ["no/train.csv cannot be read (No such file"]),
    "other lists": (
        with_lists(lambda f: (f / "train.csv").write_text("image,class\n")), class_folders,
        ["train.csv, line 1: 'image,class' is not like n0153282900000005.jpg,n01532829"],
    ),
    "another name": (append("train.csv", f"dog.jpg,{A}"), class_folders,
        [f"train.csv, line 8: 'dog.jpg,{A}' is not like"]),
    "another class": (append("test.csv", f"{one},{C}"), class_folders,
        [f"test.csv, line 8: '{one},{C}' is not like"]),
    "a short list": (with_lists(numbers=range(1, 6)), class_folders,
        [f"{A}: 4 + 1 training + test images, 5 + 1 expected"]),
    "a listed number beyond the class": (
        with_lists(numbers=(1, 2, 3, 4, 5, 14)), imagenet,
            [f"{A}: 1 listed images are not there: {listed(A, 14)}"],
    ),
    "an incomplete class of ImageNet": (
        lambda r: [(r / B / f"{B}_{n}.JPEG").unlink() for n in (7, 12)] and with_lists()(r),
            imagenet,
        [f"{B}: 11 images", "wrong images"],
    ),
    "an image too many in a class of ImageNet": (
        lambda r: write(r / B / f"{B}_1.JPEG", picture(77)) or with_lists()(r), imagenet,
            [f"{B}: 14 images"],
    ),
    "lists for a split copy": (with_lists(), split_copy,
        ["holds test, train. Expected are class folders alone"]),
    "tar files": (lambda r: write(r / f"{A}.tar", b""), empty,
        [f"it holds {A}.tar", "unpack tar files"]),
    "images in images/ of other names": (lambda r: write(r / "images" / "a.jpg", b""), empty,
        ["it holds images. Give"]),
    "a missing class": (lambda r: shutil.rmtree(r / C), class_folders, [f"{C}: 0 + 0 training"]),
    "wrong counts": (
        lambda r: (r / A / one).unlink() or write(r / C / listed(C, 7), picture(7)), class_folders,
        [f"{A}: 4 + 1", f"{C}: 5 + 2 training", "--allow-partial"],
    ),
    "another class of ImageNet": (
        lambda r: shutil.copytree(r / A, r / "n09999999"), class_folders,
            ["n09999999 is not a class of mini-ImageNet"],
    ),
    "a broken link": (
        lambda r: (r / A / one).unlink() or (r / A / one).symlink_to("gone"), class_folders,
            ["No such file or directory", one]
    ),
    "no test": (lambda r: shutil.rmtree(r / "test"), split_copy, ["holds train. Expected are"]),
    "no train": (lambda r: (r / "train").rename(r / "val"), split_copy,
        ["holds test, val. Expected are"]),
    "three splits": (lambda r: shutil.copytree(r / "test", r / "val"), split_copy,
        ["holds test, train, val. Expected are"]),
    "an image in both splits": (
        lambda r: shutil.copy(r / "train" / A / one, r / "test" / A / one), split_copy,
            [f"{A}: 5 + 2 training + test"],
    ),
    "a file at the destination": (
        lambda r: write(r.parent / "taken", b"") or {"destination": r.parent / "taken"},
            class_folders, ["taken is a file"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, tmp_path):
    damage, layout, words = BAD[name]
    root = layout(tmp_path / "copy")
    changes = damage(root)
    arguments = {"source": root, "destination": tmp_path / "out"} | (
        changes if isinstance(changes, dict) else {}
    )
    with pytest.raises(UserError) as caught:
        prepare(**arguments)
    assert all(part in str(caught.value) for part in words), str(caught.value)
    assert not Path(arguments["destination"]).is_dir() and not list(tmp_path.glob(".*draft"))
