"""The preparation of mini-ImageNet from small copies of every form."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mini_copies import (
    CLASSES,
    A,
    B,
    C,
    class_folders,
    contents,
    imagenet,
    listed,
    lists,
    manifest,
    picture,
    split_copy,
    tars,
    write,
)

from lcm.data.mini_imagenet.prepare import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mini_imagenet.py"


def test_class_folders_are_split_after_the_first_five_sixths(tmp_path):
    report = prepare(class_folders(tmp_path / "b"), tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert "3 classes, 15 training and 3 test images (the first 500" in report
    assert [r["path"] for r in rows if r["split"] == "test"] == [f"test/{wnid}/{listed(wnid, 6)}" for wnid in CLASSES]
    for row in rows:
        data = (tmp_path / "out" / row["path"]).read_bytes()
        assert data == (tmp_path / "b" / row["class"] / Path(row["path"]).name).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and int(row["size"]) == len(data)
        assert (row["width"], row["height"], row["mode"]) == ("24", "18", "RGB")
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    before = contents(tmp_path / "out")
    write(tmp_path / "out" / "train" / A / ".a.jpg.draft", b"left by a kill")
    write(tmp_path / "out" / "train" / A / listed(A, 1), b"damaged since")
    prepare(tmp_path / "b", tmp_path / "out")
    (tmp_path / "out" / "train" / A / ".a.jpg.draft").unlink()
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_split_copy_keeps_its_split(tmp_path, test):
    source = split_copy(tmp_path / "c", test)
    shutil.move(source / test / A / listed(A, 6), source / "train" / A / listed(A, 6))  # not the first-500 rule
    shutil.move(source / "train" / A / listed(A, 2), source / test / A / listed(A, 2))
    assert "(the copy's own split)" in prepare(source, tmp_path / "out")
    made = contents(tmp_path / "out")
    del made["manifest.csv"]
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
    write(source / "n09999999" / "n09999999_1.JPEG", b"a class that is not on the lists")
    chosen = lists(tmp_path / "lists")
    prepare(source, tmp_path / "out", lists=chosen)
    made = contents(tmp_path / "out")
    for wnid in CLASSES:
        for position, split in zip((2, 3, 5, 7, 11, 12), ["train"] * 5 + ["test"], strict=True):
            original = source / wnid / f"{wnid}_{7 + 5 * (position - 1)}.JPEG"
            assert made[f"{split}/{wnid}/{listed(wnid, position)}"] == original.read_bytes()
    assert len(made) == 19
    prepare(tars(tmp_path / "tars", source), tmp_path / "out-tars", lists=chosen)
    assert contents(tmp_path / "out-tars") == made


def test_lists_find_listed_names_and_leave_others_aside(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 15))
    prepare(source, tmp_path / "out", lists=lists(tmp_path / "lists"))
    assert {Path(p).name for p in contents(tmp_path / "out") if A in p} == {listed(A, n) for n in (2, 3, 5, 7, 11, 12)}


def test_imagenets_names_are_split_by_number_as_the_lists_are(tmp_path):
    source = class_folders(tmp_path / "b", range(6), lambda wnid, i: f"{wnid}_{8 + i}.JPEG")  # 8, 9, 10, ... 13
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "test" / A / f"{A}_13.JPEG").exists()


# ------------------------------------------------------------------------------------------------------- what it says


def test_duplicates_are_reported_with_both_labels(tmp_path):
    source = class_folders(tmp_path / "b")
    shutil.copy(source / A / listed(A, 1), source / B / listed(B, 2))
    shutil.copy(source / C / listed(C, 3), source / C / listed(C, 6))
    report = prepare(source, tmp_path / "out")
    assert "byte-identical images: 2 groups, 1 under two labels, 1 in both train and test" in report
    assert f"train/{A}/{listed(A, 1)} = train/{B}/{listed(B, 2)}" in report
    assert f"test/{C}/{listed(C, 6)} = train/{C}/{listed(C, 3)}" in report


def test_greyscale_and_cmyk_are_kept_and_named(tmp_path):
    source = class_folders(tmp_path / "b")
    write(source / A / listed(A, 1), picture(1, mode="L"))
    write(source / B / listed(B, 2), picture(2, mode="CMYK"))
    report = prepare(source, tmp_path / "out")
    assert f"converted to RGB when they are read: 1 images of mode L: train/{A}/{listed(A, 1)}" in report
    assert f"1 images of mode CMYK: train/{B}/{listed(B, 2)}" in report
    assert len(manifest(tmp_path / "out")) == 18


def test_low_resolution_is_said_once_and_full_resolution_not(tmp_path):
    for form, size in (("small", (84, 84)), ("full", (500, 375))):
        for wnid in CLASSES:
            for number in range(1, 7):
                write(tmp_path / form / wnid / listed(wnid, number), picture(number, size))
    report = prepare(tmp_path / "small", tmp_path / "out-small")
    assert report.count("WARNING") == 1 and "this copy is 84x84" in report and "enlarged 2.7 times" in report
    assert "WARNING" not in prepare(tmp_path / "full", tmp_path / "out-full")


def test_a_partial_copy_needs_permission(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 4))
    with pytest.raises(UserError, match="--allow-partial"):
        prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out", allow_partial=True)
    assert len(manifest(tmp_path / "out")) == 9


def test_no_space_is_found_before_copying_and_while_copying(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "b")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"no space for .*out \(0.00 GB needed"):
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        prepare(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jpg"))

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left on device.*repeat the command"):
        patch.setattr(Path, "write_bytes", full)
        prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out")
    assert len(manifest(tmp_path / "out")) == 18


@pytest.mark.parametrize("arguments, said", [(["{b}"], "97 of 100 classes are missing"), (["{none}"], "is no folder")])
def test_the_script_ends_with_one_message_and_code_2(tmp_path, arguments, said):
    class_folders(tmp_path / "b")
    paths = {"b": tmp_path / "b", "none": tmp_path / "none"}
    source, *rest = (argument.format(**paths) for argument in arguments)
    done = subprocess.run([sys.executable, SCRIPT, source, tmp_path / "out", *rest], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert said in done.stderr
