"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet, and a manifest of them, from the copies that are in use.

The parts of the few-shot layout have no class in common; for classification every class is split, 500 images for training and
100 for the test. Nothing here imports torch.
"""

import collections
import csv
import hashlib
import io
import os
import re
from pathlib import Path

from PIL import Image

from lcm.data.mini_imagenet.cache import for_each
from lcm.data.mini_imagenet.copies import PER_CLASS, WNIDS, SourceImage, find_images
from lcm.data.mini_imagenet.folder import notes_on
from lcm.errors import UserError, listed
from lcm.files import write_atomically

FIELDS = ("path", "class", "split", "width", "height", "mode", "size", "sha256")  # of the manifest


def prepare(source, destination, lists=None, allow_partial=False) -> str:
    """Make the prepared set `destination` from the copy `source` (`find_images` lists the layouts). Returns a report.

    A copy that is not split has the first 500 images of each class, in the order of their numbers, for training.
    allow_partial: fewer classes and other counts are accepted; five sixths of a class are for training then.

    Images are decoded to check them, and copied byte for byte. A `UserError` names all problems, and no manifest is written;
    the same call can be repeated.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    images, problems = find_images(source, Path(lists).expanduser() if lists is not None else None)
    rule = "the copy's own split"
    if any(image.split is None for image in images):
        images, rule = _split(images), "the first 500 of 600 of each class"
    problems += _name_problems(images)
    if not allow_partial:
        problems += _count_problems(images)
    if problems:
        raise listed(
            f"{source} cannot be used as it is (--allow-partial accepts an incomplete copy):",
            problems,
        )
    rows = _copy(images, destination)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["path"]))
    write_atomically(destination / "manifest.csv", table.getvalue().encode())
    return _report(destination, rows, rule)


def _split(images: list[SourceImage]) -> list[SourceImage]:
    """Each class split, the first 500 of 600 for training, by the numbers in the names: n01532829_5.JPEG before _10.JPEG."""

    def by_number(image):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", image.name)]

    classes = collections.defaultdict(list)
    for image in sorted(images, key=by_number):
        classes[image.wnid].append(image)
    split = []
    for members in classes.values():
        train = len(members) * PER_CLASS["train"] // sum(PER_CLASS.values())
        split += [
            member._replace(split="train" if i < train else "test")
            for i, member in enumerate(members)
        ]
    return split


def _name_problems(images: list[SourceImage]) -> list[str]:
    """Only classes of mini-ImageNet, and each name once in its class."""
    other = {image.wnid for image in images} - set(WNIDS)
    problems = [
        f"{wnid} is not a class of mini-ImageNet (ImageNet itself needs --lists)"
        for wnid in sorted(other)
    ]
    same = collections.defaultdict(list)
    for image in images:
        same[image.wnid, Path(image.name).stem.lower()].append(image)
    duplicates = [found for found in same.values() if len(found) > 1]
    return problems + [
        f"the same name twice: {', '.join(map(str, found))}. Keep one." for found in duplicates
    ]


def _count_problems(images: list[SourceImage]) -> list[str]:
    """500 + 100 images of each of the 100 classes."""
    counts = collections.Counter((image.wnid, image.split) for image in images)
    expected = "{train} + {test}".format(**PER_CLASS)
    found = {wnid: f"{counts[wnid, 'train']} + {counts[wnid, 'test']}" for wnid in WNIDS}
    return [
        f"{wnid}: {n} training + test images, {expected} expected"
        for wnid, n in found.items()
        if n != expected
    ]


def _copy(images: list[SourceImage], destination: Path) -> list[dict]:
    """Decode every image to check it, and copy it: the manifest's rows."""

    def copy_one(i):
        image, target = images[i], destination / images[i].path
        with open(image.source, "rb") as file:
            file.seek(image.offset)
            data = file.read(image.size)
        with Image.open(io.BytesIO(data)) as decoded:
            decoded.load()
        draft = target.with_name(f".{target.name}.draft")
        draft.write_bytes(data)
        os.replace(draft, target)
        digest = hashlib.sha256(data).hexdigest()
        values = (
            image.path,
            image.wnid,
            image.split,
            decoded.width,
            decoded.height,
            decoded.mode,
            len(data),
            digest,
        )
        return dict(zip(FIELDS, values, strict=True))

    try:
        for folder in {(destination / image.path).parent for image in images}:
            folder.mkdir(parents=True, exist_ok=True)
        return for_each(images, copy_one, "replace them", "images")
    except OSError as error:
        raise UserError(
            f"{destination} cannot be written: {error}. Make room, or give another destination."
        ) from error


def _report(destination: Path, rows: list[dict], rule: str) -> str:
    """What was prepared, what is unusual about it, and images that are there more than once."""
    count = collections.Counter(row["split"] for row in rows)
    copies = collections.defaultdict(list)
    for row in rows:
        copies[row["sha256"]].append(row["path"])
    duplicates = sorted(sorted(paths) for paths in copies.values() if len(paths) > 1)
    lines = [
        f"{destination}: {len({row['class'] for row in rows})} classes, {count['train']:,} training and {count['test']:,} test "
        f"images ({rule}); manifest: {destination / 'manifest.csv'}",
        *(f"WARNING: {note}" for note in notes_on(destination, [row["path"] for row in rows])),
        f"byte-identical images: {len(duplicates) or 'no'} groups",
        *(f"  {' = '.join(paths)}" for paths in duplicates),
    ]
    return "\n".join(lines)
