"""The preparation of mini-ImageNet on small copies of every form, and on everything that can be wrong with one.

The real numbers (100 classes, 500 + 100 images, lists of 64, 16 and 20 classes) are made small: 3 classes, 5 + 1, lists of 1.
"""

import csv
import errno
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

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
    assert "3 classes, 15 training and 3 test images" in report
    assert [r["path"] for r in rows if r["split"] == "test"] == [f"test/{wnid}/{listed(wnid, 6)}" for wnid in CLASSES]
    for row in rows:
        data = (tmp_path / "out" / row["path"]).read_bytes()
        assert data == (tmp_path / "b" / row["class"] / Path(row["path"]).name).read_bytes()
        assert int(row["size"]) == len(data) and (row["width"], row["height"]) == ("24", "18")
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)


def test_a_split_copy_keeps_its_split_and_can_stay_where_it_is(tmp_path):
    source = split_copy(tmp_path / "c")
    shutil.move(source / "test" / A / listed(A, 6), source / "train" / A / listed(A, 6))  # not the first-500 rule
    shutil.move(source / "train" / A / listed(A, 2), source / "test" / A / listed(A, 2))
    prepare(source, tmp_path / "out")
    before = contents(source)
    prepare(source, source)
    made = contents(tmp_path / "out")
    assert contents(source) == made == before | {"manifest.csv": made["manifest.csv"]}
    assert f"test/{A}/{listed(A, 2)}" in made
    again = prepare(source, tmp_path / "resplit", split="first")
    assert "the first 500" in again and f"test/{A}/{listed(A, 6)}" in contents(tmp_path / "resplit")


def test_val_is_taken_for_the_test_half(tmp_path):
    prepare(split_copy(tmp_path / "c", test="val"), tmp_path / "out")
    prepare(split_copy(tmp_path / "c2"), tmp_path / "out2")
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "out2").keys()


def test_the_few_shot_layout_and_a_single_folder_are_split_like_class_folders(tmp_path):
    source = class_folders(tmp_path / "b")
    for part, wnid in zip(("train", "val", "test"), CLASSES, strict=True):
        shutil.copytree(source / wnid, tmp_path / "few-shot" / part / wnid)
        for file in (source / wnid).iterdir():
            write(tmp_path / "zip" / "images" / file.name, file.read_bytes())
    lists(tmp_path / "zip")
    for form, folder in (("b", source), ("few-shot", tmp_path / "few-shot"), ("zip", tmp_path / "zip")):
        prepare(folder, tmp_path / f"out-{form}")
    assert contents(tmp_path / "out-b") == contents(tmp_path / "out-few-shot") == contents(tmp_path / "out-zip")


def test_lists_count_imagenets_images_from_one_in_the_order_of_their_numbers(tmp_path):
    source = imagenet(tmp_path / "a")
    write(source / "n09999999" / "n09999999_1.JPEG", b"a class that is not on the lists")
    report = prepare(source, tmp_path / "out", lists=lists(tmp_path / "lists"))
    made = contents(tmp_path / "out")
    for wnid in CLASSES:
        for position, split in zip((2, 3, 5, 7, 11, 12), ["train"] * 5 + ["test"], strict=True):
            original = source / wnid / f"{wnid}_{7 + 5 * (position - 1)}.JPEG"
            assert made[f"{split}/{wnid}/{listed(wnid, position)}"] == original.read_bytes()
    assert len(made) == 19 and "left aside: 1 classes that are not on the lists (n09999999)" in report


def test_tar_files_give_the_same_set_as_folders(tmp_path):
    source = imagenet(tmp_path / "a")
    archives = tars(tmp_path / "tars", source)
    chosen = lists(tmp_path / "lists")
    prepare(source, tmp_path / "out", lists=chosen)
    prepare(archives, tmp_path / "out-tars", lists=chosen)
    assert contents(tmp_path / "out") == contents(tmp_path / "out-tars")


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


# ----------------------------------------------------------------------------------------------- stopping and going on


# ---------------------------------------------------------------------------------------------------------- bad input
# Each function spoils a good copy; what it returns replaces arguments of `prepare`. Beside it: what the message must say.

FAULTS = {}


def fault(*said, form=class_folders):
    def keep(spoil):
        FAULTS[spoil.__name__] = spoil, said, form
        return spoil

    return keep


def no_form(root):
    root.mkdir()
    return root


@fault("missing does not exist", form=no_form)
def no_such_folder(root):
    return {"source": root / "missing"}


@fault("is no folder", form=no_form)
def a_file_as_source(root):
    write(root / "images.jpg", picture())
    return {"source": root / "images.jpg"}


@fault("holds no images of mini-ImageNet; it holds nothing", form=no_form)
def an_empty_folder(root):
    pass


@fault("mini-imagenet-cache-train.pkl is one of the few-shot pickles", "without the images' names", form=no_form)
def a_folder_of_pickles(root):
    write(root / "mini-imagenet-cache-train.pkl", pickle.dumps({"image_data": b"", "class_dict": {}}))


@fault("nowhere/train.csv: No such file", "nowhere/val.csv", "nowhere/test.csv")
def no_folder_of_lists(root):
    return {"lists": root.parent / "nowhere"}


@fault("train.csv: begins with 'image,class', not with filename,label")
def a_list_of_another_kind(root):
    folder = lists(root.parent / "lists")
    (folder / "train.csv").write_text("image,class\n")
    return {"lists": folder}


@fault(f"train.csv, line 8: 'dog.jpg,{A}' is not like")
def a_list_with_another_name(root):
    folder = lists(root.parent / "lists", range(1, 7))
    with open(folder / "train.csv", "a") as file:
        file.write(f"dog.jpg,{A}\n")
    return {"lists": folder}


@fault(f"train.csv, line 8: {listed(A, 2)} is listed twice, first in train.csv, line 3")
def a_list_that_names_an_image_twice(root):
    folder = lists(root.parent / "lists", range(1, 7))
    with open(folder / "train.csv", "a") as file:
        file.write(f"{listed(A, 2)},{A}\n")
    return {"lists": folder}


@fault(f"val.csv, line 2: {listed(A, 1)} is listed twice, first in train.csv, line 2", "val.csv: 0 classes, 1 expected")
def the_same_list_twice(root):
    folder = lists(root.parent / "lists", range(1, 7))
    shutil.copy(folder / "train.csv", folder / "val.csv")
    return {"lists": folder}


@fault(f"{A}: 5 images, 6 expected")
def a_list_that_is_too_short(root):
    folder = lists(root.parent / "lists", range(1, 7))
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text[: text.rindex(listed(A, 6))])
    return {"lists": folder}


@fault(f"{A}: 1 listed images are not there: {listed(A, 7)}", f"{B}: 1 listed images are not there: {listed(B, 7)}")
def a_list_that_names_missing_images(root):
    return {"lists": lists(root.parent / "lists", range(2, 8))}


@fault(f"{A}: 1 listed images are not there: {listed(A, 13)}", form=imagenet)
def a_list_that_counts_beyond_the_class(root):
    return {"lists": lists(root.parent / "lists", (1, 2, 3, 4, 5, 13))}


@fault(f"{B}: 11 images, where ImageNet has at least 12", "wrong images would be taken", form=imagenet)
def an_imagenet_class_with_an_image_missing(root):
    (root / B / f"{B}_7.JPEG").unlink()
    return {"lists": lists(root.parent / "lists")}


@fault(f"{C}: on the lists, but neither {C}/ nor {C}.tar is in ", form=imagenet)
def a_listed_class_that_is_missing(root):
    shutil.rmtree(root / C)
    return {"lists": lists(root.parent / "lists")}


@fault("holds train, test: with --lists give the class folders", form=split_copy)
def lists_for_a_split_copy(root):
    return {"lists": lists(root.parent / "lists")}


@fault(f"{A}: both ", f"{A}.tar: two copies mixed", form=imagenet)
def a_class_as_folder_and_as_tar(root):
    with tarfile.open(root / f"{A}.tar", "w") as archive:
        archive.add(root / A / f"{A}_7.JPEG", f"{A}_7.JPEG")
    return {"lists": lists(root.parent / "lists")}


@fault(f"{B}.tar: no tar file that can be read", form=imagenet)
def a_truncated_tar(root):
    archives = tars(root.parent / "tars", root)
    data = (archives / f"{B}.tar").read_bytes()
    (archives / f"{B}.tar").write_bytes(data[:1500])
    return {"source": archives, "lists": lists(root.parent / "lists")}


@fault(f"{B}.tar: no tar file that can be read", "unpack a compressed one", form=imagenet)
def a_compressed_tar(root):
    archives = tars(root.parent / "tars", root)
    (archives / f"{B}.tar").write_bytes(b"\x1f\x8b\x08" + bytes(600))
    return {"source": archives, "lists": lists(root.parent / "lists")}


@fault(f"/{B}: no images")
def an_empty_class_folder(root):
    shutil.rmtree(root / B)
    (root / B).mkdir()


@fault(f"{A}: 5 images, 6 expected", f"{C}: 7 images, 6 expected")
def wrong_counts(root):
    (root / A / listed(A, 1)).unlink()
    write(root / C / listed(C, 7), picture(7))


@fault(f"1 of 3 classes are missing: {C}")
def a_missing_class(root):
    shutil.rmtree(root / C)


@fault("not among the 100 classes of mini-ImageNet: n09999999")
def a_class_of_another_set(root):
    shutil.copytree(root / A, root / "n09999999")


@fault("'house finch' is no class")
def class_folders_with_other_names(root):
    (root / A).rename(root / "house finch")


@fault(
    f"{A}: 12 images, 6 expected",
    "This looks like ImageNet itself: say which images are meant with --lists",
    form=imagenet,
)
def imagenet_without_lists(root):
    pass


@fault(f"{listed(A, 9)}: an image of {A} by its name, in class {B}")
def an_image_in_the_wrong_class(root):
    write(root / B / listed(A, 9), picture(9))


@fault(f"{listed(A, 1)}: image file is truncated")
def a_truncated_jpeg(root):
    data = (root / A / listed(A, 1)).read_bytes()
    write(root / A / listed(A, 1), data[:-150])


@fault(f"{listed(A, 1)}: ", "truncated")
def a_truncated_png(root):
    write(root / A / listed(A, 1), picture(kind="PNG")[:300])


@fault(f"{listed(A, 1)}: no image: no kind of image file begins like this")
def a_text_file_named_jpg(root):
    write(root / A / listed(A, 1), b"<html>404 not found</html>")


@fault(f"{listed(A, 1)}: an empty file", f"{listed(B, 2)}: an empty file")
def empty_files(root):
    write(root / A / listed(A, 1), b"")
    write(root / B / listed(B, 2), b"")


@fault(
    f"{listed(C, 6)}: no image",
    f"{listed(A, 1)}: an empty file",
    f"{listed(B, 2)}: image file is truncated",
)
def several_faults_at_once(root):
    write(root / A / listed(A, 1), b"")
    write(root / B / listed(B, 2), picture()[:-100])
    write(root / C / listed(C, 6), b"x" * 100)


@fault(f"{listed(A, 1)}: pixels of mode I;16, which are not 8-bit")
def sixteen_bit_pixels(root):
    data = io.BytesIO()
    Image.new("I;16", (20, 20)).save(data, "PNG")
    write(root / A / listed(A, 1), data.getvalue())


@fault(f"{listed(A, 1)}: ", "decompression bomb")
def a_decompression_bomb(root):
    data = bytearray(picture(kind="PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    write(root / A / listed(A, 1), bytes(data))


@fault("two copies mixed: 1 images of 84x84 (such as train/", f"{listed(A, 3)}) among 18")
def two_copies_of_different_size(root):
    write(root / A / listed(A, 3), picture(3, (84, 84)))


@fault("the same name twice: ", f"{A}/{listed(A, 1)}", f"{A}/{A}00000001.png")
def a_name_twice(root):
    write(root / A / f"{A}00000001.png", picture(kind="PNG"))


@fault("the same name twice: ", f"train/{A}/{listed(A, 1)}", f"test/{A}/{listed(A, 1)}", form=split_copy)
def an_image_in_both_halves(root):
    shutil.copy(root / "train" / A / listed(A, 1), root / "test" / A / listed(A, 1))


@fault("only train; train/ and test/ are needed", form=split_copy)
def a_split_copy_without_test(root):
    shutil.rmtree(root / "test")


@fault("only val and test; train/ and test/ are needed", form=split_copy)
def a_split_copy_without_train(root):
    (root / "train").rename(root / "val")


@fault(f"{B}: images only in train", form=split_copy)
def a_class_in_one_half(root):
    shutil.rmtree(root / "test" / B)
    return {"allow_partial": True}


@fault(f"{A}: 4 images in train, 5 expected", f"{A}: 2 images in test, 1 expected", form=split_copy)
def a_split_with_other_counts(root):
    shutil.move(root / "train" / A / listed(A, 1), root / "test" / A / listed(A, 1))


@fault("train, val and test hold the same classes", form=split_copy)
def three_halves(root):
    for wnid in CLASSES:
        write(root / "val" / wnid / listed(wnid, 9), picture(9))


@fault(f"{A}/more: a folder in a class folder")
def a_folder_in_a_class_folder(root):
    write(root / A / "more" / listed(A, 7), picture())


@fault(f"{listed(A, 7)}: a link to nothing")
def a_broken_link(root):
    (root / A / listed(A, 7)).symlink_to(root / "gone.jpg")


@fault("is a file. Give a folder")
def a_file_as_destination(root):
    write(root.parent / "taken", b"")
    return {"destination": root.parent / "taken"}


@fault("holds 1 files that do not belong to this set: train/x/other.jpg")
def a_destination_with_other_images(root):
    write(root.parent / "other" / "train" / "x" / "other.jpg", b"")
    return {"destination": root.parent / "other"}


@fault("lie inside each other")
def a_destination_inside_the_source(root):
    return {"destination": root / "prepared"}


@fault("cannot be written")
def a_destination_below_a_file(root):
    write(root.parent / "file", b"")
    return {"destination": root.parent / "file" / "out"}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_named(name, tmp_path):
    spoil, said, form = FAULTS[name]
    root = form(tmp_path / "copy")
    arguments = {"source": root, "destination": tmp_path / "out"} | (spoil(root) or {})
    with pytest.raises(UserError) as caught:
        prepare(**arguments)
    message = str(caught.value)
    for words in said:
        assert words in message
    assert "Traceback" not in message and "<_io" not in message
    assert not (Path(arguments["destination"]) / "manifest.csv").exists()


def test_no_space_is_found_before_copying_and_while_copying(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "b")
    usage = shutil._ntuple_diskusage(1000, 900, 100)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"no space for .*out \(0.00 GB needed"):
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        prepare(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jpg"))

    really, written = Path.write_bytes, []

    def full_after_seven(path, data):
        if len(written) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return really(path, data)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"No space left on device.*goes on from here"):
        patch.setattr(Path, "write_bytes", full_after_seven)
        prepare(source, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) >= 6
    prepare(source, tmp_path / "out")
    assert len(manifest(tmp_path / "out")) == 18


def test_what_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch):
    """Permissions, without depending on who runs the test."""
    source = class_folders(tmp_path / "b")
    really = os.scandir

    def scandir(path):
        if Path(path).name == B:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really(path)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"{B}: cannot be read: Permission denied"):
        patch.setattr(os, "scandir", scandir)
        prepare(source, tmp_path / "out")

    really_open = open

    def opened(path, *rest, **more):
        if str(path).endswith(listed(B, 3)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return really_open(path, *rest, **more)

    with monkeypatch.context() as patch, pytest.raises(UserError, match=rf"{listed(B, 3)}: cannot be read: Permission"):
        patch.setattr("builtins.open", opened)
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize(
    "arguments, said",
    [(["{b}"], "97 of 100 classes are missing"), (["{none}"], "does not exist"), (["{b}", "--seed", "3"], "--seed")],
)
def test_the_script_ends_with_one_message_and_code_2(tmp_path, arguments, said):
    class_folders(tmp_path / "b")
    paths = {"b": tmp_path / "b", "none": tmp_path / "none"}
    source, *rest = (argument.format(**paths) for argument in arguments)
    done = subprocess.run([sys.executable, SCRIPT, source, tmp_path / "out", *rest], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert said in done.stderr
