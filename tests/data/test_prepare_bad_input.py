"""Everything that can be wrong with a copy of mini-ImageNet is named, and no manifest is written then."""

import io
import shutil
import zlib
from pathlib import Path

import pytest
from mini_copies import A, B, C, class_folders, imagenet, listed, lists, picture, split_copy, tars, write
from PIL import Image

from lcm.data.mini_imagenet.prepare import prepare
from lcm.errors import UserError

pytestmark = pytest.mark.usefixtures("small_mini_imagenet")


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
