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
    flat_copy,
    imagenet,
    listed,
    lists,
    picture,
    split_copy,
    tars,
)

from lcm.data.mini_imagenet import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")
A, B, C = CLASSES
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mini_imagenet.py"


def test_class_folders_are_split_after_the_first_five_sixths(tmp_path):
    source = class_folders(tmp_path / "b")
    (source / A / listed(A, 1)).write_bytes(picture(1, mode="L"))
    draft = tmp_path / ".out.draft"
    draft.mkdir()
    (draft / "left.jpg").write_bytes(b"by a killed process")
    report = prepare(source, tmp_path / "out")
    assert "3 classes, 15 training and 3 test images (the first 500" in report
    expected = {
        f"{'train' if number < 6 else 'test'}/{wnid}/{listed(wnid, number)}": (
            source / wnid / listed(wnid, number)
        ).read_bytes()
        for wnid in CLASSES
        for number in range(1, 7)
    }
    assert contents(tmp_path / "out") == expected and not draft.exists()


def test_a_destination_that_holds_anything_is_refused_first(tmp_path):
    """Two copies in one folder would be one set of both."""
    source = class_folders(tmp_path / "b")
    (tmp_path / "out").mkdir()
    prepare(source, tmp_path / "out")  # empty
    before = contents(tmp_path / "out")
    for again in (source, split_copy(tmp_path / "c"), tmp_path / "missing"):
        with pytest.raises(UserError, match=r"out holds files already: delete it"):
            prepare(again, tmp_path / "out")
    with pytest.raises(UserError, match=r"c holds files already"):
        prepare(tmp_path / "c", tmp_path / "c")
    assert contents(tmp_path / "out") == before


def test_one_folder_of_images_beside_the_lists(tmp_path):
    source, folders = flat_copy(tmp_path / "d"), tmp_path / "b"
    for image in (source / "images").iterdir():
        (folders / image.name[:9]).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folders / image.name[:9])
    prepare(folders, tmp_path / "out")
    prepare(source, tmp_path / "out-flat")
    prepare(source / "images", tmp_path / "out-images")
    assert contents(tmp_path / "out-flat") == contents(tmp_path / "out")
    assert contents(tmp_path / "out-images") == contents(tmp_path / "out")
    (source / "images" / "cat.jpg").write_bytes(picture())
    with pytest.raises(UserError, match=r"not named like n0153282900000005\.jpg: cat\.jpg"):
        prepare(source, tmp_path / "out-more")


@pytest.mark.parametrize("layout", [class_folders, split_copy, flat_copy])
def test_a_folder_that_is_not_used_is_named(tmp_path, layout):
    source = layout(tmp_path / "copy")
    assert "not used" not in prepare(source, tmp_path / "out")
    (source / "masks").mkdir()
    report = prepare(source, tmp_path / "again")
    assert f"WARNING: not used: the folders masks of {source}" in report


def test_classes_of_imagenet_with_another_count_are_named(tmp_path):
    source = imagenet(tmp_path / "a")
    chosen = lists(tmp_path / "lists")
    assert "most classes" not in prepare(source, tmp_path / "out", lists=chosen)
    (source / A / f"{A}_7.JPEG").unlink()
    report = prepare(source, tmp_path / "out-12", lists=chosen)
    assert f"WARNING: {A}: 12 images; most classes of ImageNet have 13" in report
    assert "every listed number after it took a wrong image" in report and B not in report


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_split_copy_keeps_its_split(tmp_path, test):
    source = split_copy(tmp_path / "c", test)
    shutil.move(
        source / test / A / listed(A, 6), source / "train" / A / listed(A, 6)
    )  # not the first-500 rule
    shutil.move(source / "train" / A / listed(A, 2), source / test / A / listed(A, 2))
    assert "(the copy's own split)" in prepare(source, tmp_path / "out")
    made = contents(tmp_path / "out")
    assert made == {path.replace("val/", "test/"): data for path, data in contents(source).items()}


def test_the_few_shot_layout_is_split_like_class_folders(tmp_path):
    source = class_folders(tmp_path / "b")
    for part, wnid in zip(("train", "val", "test"), CLASSES, strict=True):
        shutil.copytree(source / wnid, tmp_path / "few-shot" / part / wnid)
    prepare(source, tmp_path / "out")
    prepare(tmp_path / "few-shot", tmp_path / "out-few-shot")
    assert contents(tmp_path / "out") == contents(tmp_path / "out-few-shot")


def test_lists_count_imagenets_images_from_one_in_the_order_of_their_numbers(tmp_path):
    source = imagenet(tmp_path / "a")
    shutil.copytree(source / A, source / "n09999999")  # a class that is not in the lists
    chosen = lists(tmp_path / "lists")
    prepare(source, tmp_path / "out", lists=chosen)
    made = contents(tmp_path / "out")
    for wnid in CLASSES:
        for position, split in zip((2, 3, 5, 7, 11, 12), ["train"] * 5 + ["test"], strict=True):
            original = source / wnid / f"{wnid}_{7 + 5 * (position - 1)}.JPEG"
            assert made[f"{split}/{wnid}/{listed(wnid, position)}"] == original.read_bytes()
    assert len(made) == 18
    prepare(tars(tmp_path / "tars", source), tmp_path / "out-tars", lists=chosen)
    assert contents(tmp_path / "out-tars") == made


def test_lists_choose_listed_names(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 15))
    (source / f"{A}.tar").write_bytes(b"its folder is there, so this is not read")
    prepare(source, tmp_path / "out", lists=lists(tmp_path / "lists"))
    assert {Path(p).name for p in contents(tmp_path / "out") if A in p} == {
        listed(A, n) for n in (2, 3, 5, 7, 11, 12)
    }


def test_imagenets_names_are_split_by_number_as_the_lists_are(tmp_path):
    source = class_folders(
        tmp_path / "b", range(6), lambda wnid, i: f"{wnid}_{8 + i}.JPEG"
    )  # 8, 9, 10, ... 13
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "test" / A / f"{A}_13.JPEG").exists()


def test_duplicates_are_reported(tmp_path):
    source = class_folders(tmp_path / "b")
    assert "byte-identical images: no groups" in prepare(source, tmp_path / "out")
    shutil.copy(source / A / listed(A, 1), source / B / listed(B, 2))
    shutil.copy(source / C / listed(C, 3), source / C / listed(C, 6))
    report = prepare(source, tmp_path / "out-2").splitlines()
    assert report[-3:] == [
        "byte-identical images: 2 groups",
        f"  test/{C}/{listed(C, 6)} = train/{C}/{listed(C, 3)}",
        f"  train/{A}/{listed(A, 1)} = train/{B}/{listed(B, 2)}",
    ]


@pytest.mark.parametrize("size, warnings", [((84, 84), 1), ((500, 375), 0)])
def test_the_report_warns_of_low_resolution(tmp_path, size, warnings):
    source = class_folders(tmp_path / "b")
    for path in source.rglob("*.jpg"):
        path.write_bytes(picture(int(path.stem[-8:]), size))
    report = prepare(source, tmp_path / "out")
    assert report.count("WARNING: low resolution: images of 84x84") == warnings


def test_a_partial_copy_needs_permission(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 4))
    with pytest.raises(UserError, match="--allow-partial"):
        prepare(source, tmp_path / "out")
    command = [sys.executable, SCRIPT, source, tmp_path / "out", "--allow-partial"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 classes, 6 training and 3 test images" in done.stdout
    assert len(contents(tmp_path / "out")) == 9


def test_a_full_disk_is_named_and_the_command_can_be_repeated(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "b")

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"No space left on device.*Make room"),
    ):
        patch.setattr(Path, "write_bytes", full)
        prepare(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    prepare(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 18
