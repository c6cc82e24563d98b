"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet from the copies that are in use.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet
and 600 images of each. The usual lists of them are those of S. Ravi and H. Larochelle,
"Optimization as a Model for Few-Shot Learning" (2017): train.csv, val.csv and test.csv with 64, 16
and 20 classes. A name in a list is a WordNet id and a running number: n0153282900000005.jpg is the
fifth training image of n01532829 in ImageNet, counted from 1 in the order of ImageNet's own numbers
(n01532829_<number>.JPEG).

The few-shot parts share no class; for classification every class is split, 500 + 100 images.
"""

import collections
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lcm.data.folder import entries, low_resolution
from lcm.data.image_cache import decode, for_each
from lcm.data.wnids import WNIDS
from lcm.errors import UserError, listed

PER_CLASS = {"train": 500, "test": 100}  # images of a class
LISTS = ("train.csv", "val.csv", "test.csv")
# Training images of a class of ImageNet: from 732 to 1,300, in most classes 1,300.
FEWEST_IN_IMAGENET, MOST_IN_IMAGENET = 732, 1300
LISTED = re.compile(r"((n\d{8})\d{8}\.(?:jpg|jpeg|png))", re.I)
IMAGENET = re.compile(r"n\d{8}_(\d+)\.jpe?g", re.I)


class SourceImage(NamedTuple):
    """One image of a copy: its class, its name in the prepared set, and its file."""

    wnid: str
    name: str
    source: Path
    split: str | None = None  # train or test, where the copy says so

    def __str__(self):
        return str(self.source)

    @property
    def path(self) -> str:
        """Its path in the prepared set."""
        return f"{self.split}/{self.wnid}/{self.name}"


def prepare(source, destination, lists=None, allow_partial=False) -> str:
    """Make the prepared set `destination` from the copy `source`. Returns a report.

    `find_images` lists the layouts of copies. One that is not split has the first 500 images of
    each class, in the order of their numbers, for training.
    allow_partial: fewer classes and other counts are accepted; five sixths of a class are for
    training then.

    Images are decoded to check them, and copied byte for byte. A `UserError` names all problems.
    `destination` appears once it is complete; one that holds anything is refused first.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(
            f"{destination} holds files already, or is a file: delete it to prepare the set anew, "
            "or give another destination"
        )
    problems, notes = [], []
    try:
        images = find_images(source, lists, problems, notes)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}): change its permissions."
        ) from error
    rule = "the copy's own split"
    if any(image.split is None for image in images):
        images, rule = _split(images), "the first 500 of 600 of each class"
    problems += _name_problems(images)
    if not allow_partial:
        problems += _count_problems(images)
    if problems:
        title = f"{source} cannot be used as it is (--allow-partial accepts an incomplete copy):"
        raise listed(title, problems)
    draft = destination.with_name(f".{destination.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        for folder in {(draft / image.path).parent for image in images}:
            folder.mkdir(parents=True)
        sizes = _copy(images, draft)
        draft.rename(destination)
    except OSError as error:
        raise UserError(
            f"{destination} cannot be written: {error}. Make room, or give another destination."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    count = collections.Counter(image.split for image in images)
    lines = [
        f"{destination}: {len({image.wnid for image in images})} classes, {count['train']:,} "
        f"training and {count['test']:,} test images ({rule})",
        *(f"WARNING: {note}" for note in notes + low_resolution(np.array(sizes), 224)),
    ]
    return "\n".join(lines)


def find_images(source: Path, lists, problems: list, notes: list) -> list[SourceImage]:
    """The images of a copy; its problems, as far as names tell them, and notes go to the lists.

    `source` holds one of
      (a) ImageNet's training images, <wnid>/*.JPEG, with `lists`, the folder of the three few-shot
          lists;
      (b) 100 class folders of 600 images, or the few-shot layout: train/, val/ and test/ with 64,
          16 and 20 of the class folders;
      (c) train/<wnid>/ and test/<wnid>/ (or val/<wnid>/) with 500 and 100 images a class: the
          images are split already;
      (d) all images in one folder under the names of the lists, which tell their classes:
          images/*.jpg, often beside train.csv, val.csv and test.csv.
    Raises `UserError` where `source` has none of these layouts, `OSError` where it cannot be read.
    """
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder. Give the folder with the images; unpack an archive first. "
            "The few-shot pickles cannot be used: they hold 84x84 pixels without the images' names, "
            "and reading a pickle runs the code in it."
        )
    parts = [source / part for part in ("train", "val", "test") if (source / part).is_dir()]
    found = [_classes(part) for part in parts or [source]]
    few_shot = len(parts) == 3 and sum(map(len, found)) == len(set().union(*found))
    split = len(parts) == 2 and parts[0].name == "train"
    if parts and (lists is not None or not (few_shot or split)):
        raise UserError(
            f"{source} holds {names(parts)}. Expected are class folders alone (with --lists), "
            "train/, val/ and test/ with 64, 16 and 20 different classes, or train/ and test/ (or "
            "val/) with the same classes."
        )
    if not any(found):
        return _flat_images(source, notes)
    if lists is not None:
        listed = _read_lists(Path(lists).expanduser(), problems)
        return _listed_images(listed, found[0], problems, notes)
    notes += _unused(source, parts or list(found[0].values()))
    return [
        image
        for classes, half in zip(found, ("train", "test") if split else [None] * 3, strict=False)
        for folder in classes.values()
        for image in _class_images(folder, half)
    ]


def names(paths, limit: int = 5) -> str:
    """The first names of many paths, and how many more there are."""
    every = sorted(path if isinstance(path, str) else path.name for path in paths)
    more = f" and {len(every) - limit:,} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def _unused(source: Path, used: list[Path]) -> list[str]:
    """A note on the folders of a copy that are not read."""
    others = {Path(e.path) for e in entries(source) if e.is_dir()} - {source, *used}
    return [f"not used: the folders {names(others)} of {source}"] if others else []


def _classes(folder: Path) -> dict[str, Path]:
    """{wnid: its folder}."""
    return {e.name: Path(e.path) for e in entries(folder) if re.fullmatch(r"n\d{8}", e.name)}


def _class_images(folder: Path, split: str | None = None) -> list[SourceImage]:
    """All files of a class folder; whether they are images is found in decoding."""
    return [SourceImage(folder.name, e.name, Path(e.path), split) for e in entries(folder)]


def _flat_images(source: Path, notes: list) -> list[SourceImage]:
    """All images of one folder, whose names tell their classes. Raises `UserError` for none."""
    folder = source / "images" if (source / "images").is_dir() else source
    images = [
        SourceImage(match[2], entry.name, Path(entry.path))
        for entry in entries(folder)
        if (match := LISTED.fullmatch(entry.name))
    ]
    if not images:
        raise UserError(
            f"{source} holds no class folders of mini-ImageNet; it holds "
            f"{names(source.iterdir()) or 'nothing'}. Give a folder with class folders "
            "(n01532829, ...; unpack tar files), train/ and test/, or images/ with "
            "n0153282900000005.jpg, ..."
        )
    notes += _unused(source, [folder])
    return images


def _read_lists(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """{wnid: names} of the three lists."""
    listed = {}
    for path in (folder / file for file in LISTS):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: {error}; the three lists of Ravi and Larochelle are needed")
            continue
        for number, line in enumerate(lines, 1):
            name, _, wnid = line.partition(",")
            if (match := LISTED.fullmatch(name)) and match[2] == wnid:
                listed.setdefault(wnid, []).append(name)
            elif (number, line) != (1, "filename,label"):
                like = "n0153282900000005.jpg,n01532829"
                problems.append(f"{path}, line {number}: {line[:60]!r} is not like {like}")
    return listed


def _listed_images(listed: dict, classes: dict[str, Path], problems: list, notes: list):
    """The listed images, under their listed names; other classes are not read."""
    chosen = []
    for wnid in (wnid for wnid in listed if wnid in classes):
        images = _class_images(classes[wnid])
        if images and all(IMAGENET.fullmatch(image.name) for image in images):
            if not FEWEST_IN_IMAGENET <= len(images) <= MOST_IN_IMAGENET:
                problems.append(
                    f"{wnid}: {len(images)} images, where ImageNet has {FEWEST_IN_IMAGENET} to "
                    f"{MOST_IN_IMAGENET} of a class. The numbers in the lists count all of them: "
                    "with one missing, wrong images would be taken. Complete the class."
                )
                continue
            if len(images) != MOST_IN_IMAGENET:
                notes.append(
                    f"{wnid}: {len(images)} images; most classes of ImageNet have "
                    f"{MOST_IN_IMAGENET}, some fewer. If your copy lacks one, every listed number "
                    "after it took a wrong image: compare with the official archive of the class"
                )
            images.sort(key=lambda image: int(IMAGENET.fullmatch(image.name)[1]))
            have = {f"{wnid}{number:08}": image for number, image in enumerate(images, 1)}
        else:
            have = {Path(image.name).stem.lower(): image for image in images}
        wanted = {name: have.get(Path(name).stem.lower()) for name in listed[wnid]}
        if missing := [name for name, image in wanted.items() if image is None]:
            problems.append(f"{wnid}: {len(missing)} listed images are not there: {names(missing)}")
        chosen += [image._replace(name=name) for name, image in wanted.items() if image is not None]
    return chosen


def _split(images: list[SourceImage]) -> list[SourceImage]:
    """Each class split, the first 500 of 600 for training, by number: _5.JPEG before _10.JPEG."""

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
    return problems + [
        f"the same name twice: {', '.join(map(str, found))}. Keep one."
        for found in same.values()
        if len(found) > 1
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


def _copy(images: list[SourceImage], destination: Path) -> list[tuple[int, int]]:
    """Decode every image to check it, and copy its file. Returns the (height, width) of each."""

    def copy_one(i):
        data = images[i].source.read_bytes()
        size = decode(data).size
        (destination / images[i].path).write_bytes(data)
        return size[::-1]

    return for_each(images, copy_one, "images")
