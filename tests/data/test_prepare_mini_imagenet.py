"""The preparation of mini-ImageNet from small copies of every layout."""

import errno
import hashlib
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
    imagenet,
    listed,
    lists,
    manifest,
    picture,
    split_copy,
    tars,
)

from lcm.data.mini_imagenet.prepare import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")
A, B, C = CLASSES
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mini_imagenet.py"


def test_class_folders_are_split_after_the_first_five_sixths(tmp_path):
    source = class_folders(tmp_path / "b")
    (source / A / listed(A, 1)).write_bytes(picture(1, mode="L"))
    report = prepare(source, tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert "3 classes, 15 training and 3 test images (the first 500" in report
    assert [r["path"] for r in rows if r["split"] == "test"] == [
        f"test/{wnid}/{listed(wnid, 6)}" for wnid in CLASSES
    ]
    for row in rows:
        data = (tmp_path / "out" / row["path"]).read_bytes()
        assert data == (source / row["class"] / Path(row["path"]).name).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest() and int(row["size"]) == len(data)
        assert (row["width"], row["height"]) == ("24", "18")
    assert [r["mode"] for r in rows].count("RGB") == 17 and rows[3]["mode"] == "L"
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "train" / A / ".a.jpg.draft").write_bytes(b"left by a killed process")
    (tmp_path / "out" / "train" / A / listed(A, 1)).write_bytes(b"damaged since")
    prepare(source, tmp_path / "out")
    (tmp_path / "out" / "train" / A / ".a.jpg.draft").unlink()
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_split_copy_keeps_its_split(tmp_path, test):
    source = split_copy(tmp_path / "c", test)
    shutil.move(
        source / test / A / listed(A, 6), source / "train" / A / listed(A, 6)
    )  # not the first-500 rule
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
    shutil.copytree(source / A, source / "n09999999")  # a class that is not in the lists
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
    report = prepare(source, tmp_path / "out").splitlines()
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
    assert report.count("WARNING: a copy in low resolution: images of 84x84") == warnings


def test_a_partial_copy_needs_permission(tmp_path):
    source = class_folders(tmp_path / "b", range(1, 4))
    with pytest.raises(UserError, match="--allow-partial"):
        prepare(source, tmp_path / "out")
    command = [sys.executable, SCRIPT, source, tmp_path / "out", "--allow-partial"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        "3 classes, 6 training and 3 test images" in done.stdout
        and len(manifest(tmp_path / "out")) == 9
    )


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
    prepare(source, tmp_path / "out")
    assert len(manifest(tmp_path / "out")) == 18
