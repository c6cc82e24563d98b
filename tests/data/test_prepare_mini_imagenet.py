"""The preparation of mini-ImageNet on small copies of every form, and on everything that can be wrong with one.

The real numbers (100 classes, 500 + 100 images, lists of 64, 16 and 20 classes) are made small: 3 classes, 5 + 1, lists of 1.
"""

import csv
import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lcm.data.mini_imagenet import copies as mini_imagenet_copies
from lcm.data.mini_imagenet import prepare as prepare_mini_imagenet
from lcm.data.mini_imagenet.copies import WNIDS
from lcm.data.mini_imagenet.prepare import prepare
from lcm.errors import UserError

A, B, C = CLASSES = WNIDS[:3]
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_mini_imagenet.py"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(prepare_mini_imagenet, "WNIDS", CLASSES)
    monkeypatch.setattr(prepare_mini_imagenet, "PER_CLASS", {"train": 5, "test": 1})
    monkeypatch.setattr(mini_imagenet_copies, "LISTS", dict.fromkeys(mini_imagenet_copies.LISTS, 1))
    for module in (prepare_mini_imagenet, mini_imagenet_copies):
        monkeypatch.setattr(module, "FEWEST_IN_IMAGENET", 12)


def picture(number=0, size=(24, 18), mode="RGB", kind="JPEG") -> bytes:
    """An image file of which no two numbers are equal."""
    image = Image.effect_noise((24, 18), 40).convert("RGB").resize(size)
    image.paste((number % 256, number // 256, 7), (0, 0, 8, 8))
    data = io.BytesIO()
    image.convert(mode).save(data, kind)
    return data.getvalue()


def listed(wnid, number):
    return f"{wnid}{number:08}.jpg"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def class_folders(root, numbers=range(1, 7), name=listed):
    """(b): three classes of six images."""
    for wnid in CLASSES:
        for number in numbers:
            write(root / wnid / name(wnid, number), picture(number))
    return root


def split_copy(root, test="test"):
    """(c)"""
    for wnid in CLASSES:
        for number in range(1, 7):
            write(root / ("train" if number < 6 else test) / wnid / listed(wnid, number), picture(number))
    return root


def imagenet(root):
    """(a): three classes of twelve images under ImageNet's names, whose numbers have gaps and unequal lengths."""
    return class_folders(root, range(12), lambda wnid, i: f"{wnid}_{7 + 5 * i}.JPEG")


def lists(root, numbers=(2, 3, 5, 7, 11, 12)):
    """The three lists, a class each."""
    root.mkdir(parents=True, exist_ok=True)
    for file, wnid in zip(mini_imagenet_copies.LISTS, CLASSES, strict=True):
        rows = "".join(f"{listed(wnid, number)},{wnid}\n" for number in numbers)
        (root / file).write_text(f"filename,label\n{rows}")
    return root


def tars(root, source):
    """Class folders -> one tar file a class."""
    root.mkdir(parents=True)
    for wnid in CLASSES:
        with tarfile.open(root / f"{wnid}.tar", "w") as archive:
            for file in sorted((source / wnid).iterdir()):
                archive.add(file, file.name)
    return root


def manifest(root):
    with open(root / "manifest.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------------------- forms


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


# ---------------------------------------------------------------------------------------------------------- bad input


def truncate(path, length):
    path.write_bytes(path.read_bytes()[:length])


def with_lists(change=lambda folder: None, numbers=range(1, 7)):
    def spoil(root):
        folder = lists(root.parent / "lists", numbers)
        change(folder)
        return {"lists": folder}

    return spoil


def append(file, line):
    return lambda folder: (folder / file).write_text((folder / file).read_text() + line + "\n")


def as_tars(change):
    def spoil(root):
        change(archives := tars(root.parent / "tars", root))
        return {"source": archives, "lists": lists(root.parent / "lists")}

    return spoil


def a_png(width):
    """A whole PNG whose header claims width x width pixels."""
    data = bytearray(picture(kind="PNG"))
    data[16:24] = width.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def sixteen_bits():
    data = io.BytesIO()
    Image.new("I;16", (20, 20)).save(data, "PNG")
    return data.getvalue()


one = listed(A, 1)
BAD = {  # what spoils a good copy (a dict that it returns replaces arguments of `prepare`), its form, what the message says
    "no such folder": (lambda r: {"source": r / "missing"}, class_folders, ["missing is no folder"]),
    "an archive": (lambda r: {"source": Path(__file__)}, class_folders, ["is no folder", "unpack an archive"]),
    "nothing": (shutil.rmtree, lambda r: r.mkdir() or r, ["is no folder"]),
    "few-shot pickles": (
        lambda r: write(r / "cache-train.pkl", b""), lambda r: r.mkdir() or r, ["no class folders", "cache-train.pkl"],
    ),
    "no lists": (lambda r: {"lists": r / "no"}, class_folders, ["no/train.csv", "No such file", "no/test.csv"]),
    "other lists": (
        with_lists(lambda f: (f / "train.csv").write_text("image,class\n")), class_folders,
        ["train.csv: begins with 'image,class', not with filename,label"],
    ),
    "another name": (
        with_lists(append("train.csv", f"dog.jpg,{A}")), class_folders, [f"train.csv, line 8: dog.jpg,{A} is not like"],
    ),
    "another class": (
        with_lists(append("test.csv", f"{listed(A, 7)},{C}")), class_folders, [f"line 8: {listed(A, 7)},{C} is not like"],
    ),
    "an image twice": (
        with_lists(append("train.csv", f"{listed(A, 2)},{A}")), class_folders, [f"line 8: {listed(A, 2)} is listed twice"],
    ),
    "a list twice": (
        with_lists(lambda f: shutil.copy(f / "train.csv", f / "val.csv")), class_folders, ["val.csv: 0 classes, 1 expected"],
    ),
    "a short list": (with_lists(numbers=range(1, 6)), class_folders, [f"{A}: 5 images, 6 expected"]),
    "missing images": (
        with_lists(numbers=range(2, 8)), class_folders, [f"{A}: 1 listed images are not there: {listed(A, 7)}"],
    ),
    "beyond the class": (
        with_lists(numbers=(1, 2, 3, 4, 5, 13)), imagenet, [f"{A}: 1 listed images are not there: {listed(A, 13)}"],
    ),
    "an incomplete class": (
        lambda r: (r / B / f"{B}_7.JPEG").unlink() or with_lists()(r), imagenet, [f"{B}: 11 images", "wrong images"],
    ),
    "no listed class": (
        lambda r: shutil.rmtree(r / C) or with_lists()(r), imagenet, [f"{C}: on the lists, but neither {C}/ nor {C}.tar"],
    ),
    "lists for a split copy": (with_lists(), split_copy, ["holds test, train: with --lists"]),
    "folder and tar": (lambda r: tars(r / "x", r) and (r / "x" / f"{A}.tar").rename(r / f"{A}.tar"), imagenet,
                       [f"{A}: both ", f"{A}.tar: two copies mixed"]),
    "a cut tar": (as_tars(lambda f: truncate(f / f"{B}.tar", 1500)), imagenet, [f"{B}.tar: cannot be read"]),
    "a compressed tar": (
        as_tars(lambda f: write(f / f"{B}.tar", b"\x1f\x8b\x08" + bytes(600))), imagenet, ["unpack a compressed one"],
    ),
    "an empty class": (lambda r: [f.unlink() for f in (r / B).iterdir()], class_folders, [f"/{B}: no images"]),
    "wrong counts": (
        lambda r: (r / A / one).unlink() or write(r / C / listed(C, 7), picture(7)), class_folders,
        [f"{A}: 5 images, 6 expected", f"{C}: 7 images, 6 expected"],
    ),
    "a missing class": (lambda r: shutil.rmtree(r / C), class_folders, [f"1 of 3 classes are missing: {C}"]),
    "a foreign class": (
        lambda r: shutil.copytree(r / A, r / "n09999999"), class_folders, ["not among the 100 classes", "n09999999"],
    ),
    "other folders": (lambda r: (r / A).rename(r / "house finch"), class_folders, ["'house finch' is no class"]),
    "loose images": (lambda r: write(r / one, picture()), class_folders, [f"{one}: an image in no class folder"]),
    "ImageNet": (lambda r: None, imagenet, [f"{A}: 12 images, 6 expected", "looks like ImageNet itself"]),
    "a wrong class": (
        lambda r: write(r / B / listed(A, 9), picture(9)), class_folders, [f"an image of {A} by its name, in class {B}"],
    ),
    "cut": (lambda r: truncate(r / A / one, 700), class_folders, [f"{one}: image file is truncated"]),
    "several": (
        lambda r: [write(r / A / one, b""), write(r / B / listed(B, 2), picture()[:-100]),
                   write(r / C / listed(C, 6), b"x" * 100)], class_folders,
        ["3 problems", f"{one}: an empty file", f"{listed(B, 2)}: image file", f"{listed(C, 6)}: no image"],
    ),
    "16 bits": (lambda r: write(r / A / one, sixteen_bits()), class_folders, [f"{one}: pixels of mode I;16, which"]),
    "a bomb": (lambda r: write(r / A / one, a_png(60_000)), class_folders, [f"{one}: ", "decompression bomb"]),
    "two sizes": (
        lambda r: write(r / A / listed(A, 3), picture(3, (84, 84))), class_folders, ["two copies mixed: 1 images of 84x84"],
    ),
    "a name twice": (
        lambda r: write(r / A / f"{A}00000001.png", picture(kind="PNG")), class_folders, ["the same name twice: ", one],
    ),
    "in both halves": (
        lambda r: shutil.copy(r / "train" / A / one, r / "test" / A / one), split_copy,
        ["the same name twice: ", f"train/{A}/{one}", f"test/{A}/{one}"],
    ),
    "no test": (lambda r: shutil.rmtree(r / "test"), split_copy, ["train hold neither"]),
    "no train": (lambda r: (r / "train").rename(r / "val"), split_copy, ["test, val hold neither"]),
    "one half": (
        lambda r: shutil.rmtree(r / "test" / B) or {"allow_partial": True}, split_copy, [f"{B}: images only in train"],
    ),
    "other halves": (
        lambda r: shutil.move(r / "train" / A / one, r / "test" / A / one), split_copy,
        [f"{A}: 4 images in train, 5 expected", f"{A}: 2 images in test, 1 expected"],
    ),
    "three halves": (
        lambda r: shutil.copytree(r / "test", r / "val"), split_copy, ["test, train, val hold neither"],
    ),
    "a folder inside": (lambda r: (r / A / "more").mkdir(), class_folders, [f"{A}/more: not a file"]),
    "a broken link": (lambda r: (r / A / "x.jpg").symlink_to("gone"), class_folders, ["x.jpg: not a file"]),
    "a file there": (
        lambda r: write(r.parent / "taken", b"") or {"destination": r.parent / "taken"}, class_folders, ["cannot be written"],
    ),
    "another set there": (
        lambda r: write(r.parent / "out" / "train" / "x" / "other.jpg", b""), class_folders,
        ["holds 1 files that do not belong to this set: train/x/other.jpg"],
    ),
    "destination inside": (lambda r: {"destination": r / "out"}, class_folders, ["inside each other"]),
    "in place": (lambda r: {"destination": r}, class_folders, ["are the same or inside"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, tmp_path):
    spoil, form, said = BAD[name]
    root = form(tmp_path / "copy")
    changes = spoil(root)
    arguments = {"source": root, "destination": tmp_path / "out"} | (changes if isinstance(changes, dict) else {})
    with pytest.raises(UserError) as caught:
        prepare(**arguments)
    assert all(words in str(caught.value) for words in said), str(caught.value)
    assert not (Path(arguments["destination"]) / "manifest.csv").exists()


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
