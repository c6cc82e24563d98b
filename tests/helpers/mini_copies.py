"""Small copies of mini-ImageNet in every layout that `prepare` reads.

For tests with the fixture `small_mini_imagenet`.
"""

import io
import itertools

from PIL import Image

from lcm.data.mini_imagenet import LISTS, WNIDS

A, B, C = CLASSES = WNIDS[:3]


def picture(number=0, size=(24, 18), mode="RGB") -> bytes:
    """An image file, a different one for each number."""
    image = Image.effect_noise((24, 18), 40).convert("RGB").resize(size)
    image.paste((number % 256, number // 256, 7), (0, 0, 8, 8))
    data = io.BytesIO()
    image.convert(mode).save(data, "JPEG")
    return data.getvalue()


def listed(wnid, number):
    return f"{wnid}{number:08}.jpg"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def class_folders(root, numbers=range(1, 7), name=listed):
    """(b): three classes of six images."""
    for wnid, number in itertools.product(CLASSES, numbers):
        write(root / wnid / name(wnid, number), picture(number))
    return root


def few_shot(root):
    """(b): a class in each of train/, val/ and test/."""
    for part, wnid in zip(("train", "val", "test"), CLASSES, strict=True):
        for number in range(1, 7):
            write(root / part / wnid / listed(wnid, number), picture(number))
    return root


def split_copy(root, test="test"):
    """(c)"""
    for wnid, number in itertools.product(CLASSES, range(1, 7)):
        half = "train" if number < 6 else test
        write(root / half / wnid / listed(wnid, number), picture(number))
    return root


def imagenet(root):
    """(a): three classes of 13 images under ImageNet's names, whose numbers have gaps."""
    return class_folders(root, range(13), lambda wnid, i: f"{wnid}_{7 + 5 * i}.JPEG")


def flat_copy(root):
    """(d): all images in one folder, beside the lists."""
    for wnid, number in itertools.product(CLASSES, range(1, 7)):
        write(root / "images" / listed(wnid, number), picture(number))
    return lists(root, range(1, 7))


def lists(root, numbers=(2, 3, 5, 7, 11, 12)):
    """The three lists, a class each."""
    for file, wnid in zip(LISTS, CLASSES, strict=True):
        rows = "".join(f"{listed(wnid, number)},{wnid}\n" for number in numbers)
        write(root / file, f"filename,label\n{rows}".encode())
    return root


def contents(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
