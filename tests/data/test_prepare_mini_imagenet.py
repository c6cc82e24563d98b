"""The preparation of mini-ImageNet from small copies of every layout."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mini_copies import (
    CLASSES,
    class_folders,
    contents,
    few_shot,
    flat_copy,
    imagenet,
    listed,
    lists,
    split_copy,
)

from lcm.data.mini_imagenet import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")
A, B, C = CLASSES
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mini_imagenet.py"


@pytest.mark.parametrize(
    "layout", [class_folders, few_shot, flat_copy, lambda root: flat_copy(root) / "images"]
)
def test_a_copy_that_is_not_split_is_split_after_five_sixths(tmp_path, layout):
    source = layout(tmp_path / "copy")
    draft = tmp_path / ".out.draft"
    draft.mkdir()
    (draft / "left.jpg").write_bytes(b"by a killed process")
    report = prepare(source, tmp_path / "out")
    assert "3 classes, 15 training and 3 test images (the first 500" in report
    names = {(wnid, number): listed(wnid, number) for wnid in CLASSES for number in range(1, 7)}
    files = {path.name: path.read_bytes() for path in source.rglob("*.jpg")}
    assert contents(tmp_path / "out") == {
        f"{'train' if number < 6 else 'test'}/{wnid}/{name}": files[name]
        for (wnid, number), name in names.items()
    }
    assert not draft.exists()


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_split_copy_keeps_its_split(tmp_path, test):
    source = split_copy(tmp_path / "c", test)
    # not the first-500 rule
    shutil.move(source / test / A / listed(A, 6), source / "train" / A / listed(A, 6))
    shutil.move(source / "train" / A / listed(A, 2), source / test / A / listed(A, 2))
    assert "(the copy's own split)" in prepare(source, tmp_path / "out")
    made = contents(tmp_path / "out")
    assert made == {path.replace("val/", "test/"): data for path, data in contents(source).items()}


def test_a_destination_that_holds_anything_is_refused_first(tmp_path):
    """Two copies in one folder would be one set of both."""
    source = class_folders(tmp_path / "b")
    (tmp_path / "out").mkdir()
    prepare(source, tmp_path / "out")  # empty
    before = contents(tmp_path / "out")
    for again in (source, split_copy(tmp_path / "c"), tmp_path / "missing"):
        with pytest.raises(UserError, match=r"out is a file or holds files already: delete it"):
            prepare(again, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("layout", [class_folders, split_copy, flat_copy])
def test_a_folder_that_is_not_used_is_named(tmp_path, layout):
    source = layout(tmp_path / "copy")
    assert "not used" not in prepare(source, tmp_path / "out")
    (source / "masks").mkdir()
    report = prepare(source, tmp_path / "again")
    assert f"WARNING: not used: the folders masks of {source}" in report


def test_lists_count_imagenets_images_from_one_in_the_order_of_their_numbers(tmp_path):
    source = imagenet(tmp_path / "a")
    shutil.copytree(source / A, source / "n09999999")  # a class that is not in the lists
    chosen = lists(tmp_path / "lists")
    assert "most classes" not in prepare(source, tmp_path / "out", lists=chosen)
    made = contents(tmp_path / "out")
    for wnid in CLASSES:
        for position, split in zip((2, 3, 5, 7, 11, 12), ["train"] * 5 + ["test"], strict=True):
            original = source / wnid / f"{wnid}_{7 + 5 * (position - 1)}.JPEG"
            assert made[f"{split}/{wnid}/{listed(wnid, position)}"] == original.read_bytes()
    assert len(made) == 18
    (source / A / f"{A}_7.JPEG").unlink()
    report = prepare(source, tmp_path / "out-12", lists=chosen)
    assert f"WARNING: {A}: 12 images; most classes of ImageNet have 13" in report
    assert "every listed number after it took a wrong image" in report and B not in report


def test_lists_choose_listed_names(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 15))
    prepare(source, tmp_path / "out", lists=lists(tmp_path / "lists"))
    assert {Path(p).name for p in contents(tmp_path / "out") if A in p} == {
        listed(A, n) for n in (2, 3, 5, 7, 11, 12)
    }


def test_imagenets_names_are_split_by_number_as_the_lists_are(tmp_path):
    numbers = range(8, 14)  # 10 comes after 9
    source = class_folders(tmp_path / "b", numbers, lambda wnid, i: f"{wnid}_{i}.JPEG")
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "test" / A / f"{A}_13.JPEG").exists()


def test_a_partial_copy_needs_permission(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 4))
    with pytest.raises(UserError, match="--allow-partial"):
        prepare(source, tmp_path / "out")
    command = [sys.executable, SCRIPT, source, tmp_path / "out", "--allow-partial"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 classes, 6 training and 3 test images" in done.stdout
    assert len(contents(tmp_path / "out")) == 9


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "b")

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"No space left on device.*Make room"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
