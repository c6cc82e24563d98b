"""The copies of mini-ImageNet that are in use, and the images in them.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet and 600 images of each. The
usual lists of them are those of S. Ravi and H. Larochelle, "Optimization as a Model for Few-Shot Learning" (2017): train.csv,
val.csv and test.csv with 64, 16 and 20 classes. A name in a list is a WordNet id and a running number: n0153282900000005.jpg
is the fifth training image of n01532829 in ImageNet, counted from 1 in the order of ImageNet's own numbers
(n01532829_<number>.JPEG).
"""

import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from lcm.data.class_folders import entries
from lcm.errors import UserError

WNIDS = tuple(  # the 100 classes
    """
    n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01855672 n01910747 n01930112 n01981276 n02074367
    n02089867 n02091244 n02091831 n02099601 n02101006 n02105505 n02108089 n02108551 n02108915 n02110063 n02110341
    n02111277 n02113712 n02114548 n02116738 n02120079 n02129165 n02138441 n02165456 n02174001 n02219486 n02443484
    n02457408 n02606052 n02687172 n02747177 n02795169 n02823428 n02871525 n02950826 n02966193 n02971356 n02981792
    n03017168 n03047690 n03062245 n03075370 n03127925 n03146219 n03207743 n03220513 n03272010 n03337140 n03347037
    n03400231 n03417042 n03476684 n03527444 n03535780 n03544143 n03584254 n03676483 n03770439 n03773504 n03775546
    n03838899 n03854065 n03888605 n03908618 n03924679 n03980874 n03998194 n04067472 n04146614 n04149813 n04243546
    n04251144 n04258138 n04275548 n04296562 n04389033 n04418357 n04435653 n04443257 n04509417 n04515003 n04522168
    n04596742 n04604644 n04612504 n06794110 n07584110 n07613480 n07697537 n07747607 n09246464 n09256479 n13054560
    n13133613
    """.split()  # noqa: SIM905
)
PER_CLASS = {"train": 500, "test": 100}  # images of a class
LISTS = ("train.csv", "val.csv", "test.csv")
FEWEST_IN_IMAGENET = 732  # training images of ImageNet's smallest class
LISTED = re.compile(r"((n\d{8})\d{8}\.(?:jpg|jpeg|png)),\2", re.I)
IMAGENET = re.compile(r"n\d{8}_(\d+)\.jpe?g", re.I)


class SourceImage(NamedTuple):
    """One image of a copy: its class, its name in the prepared set, and where its bytes are."""

    wnid: str
    name: str
    source: Path  # the image file, or the tar file that holds it
    size: int
    offset: int = 0  # of its bytes in `source`
    split: str | None = None  # train or test, where the copy says so

    def __str__(self):
        return f"{self.source}:{self.name}" if self.source.suffix == ".tar" else str(self.source)

    @property
    def path(self) -> str:
        """Its path in the prepared set."""
        return f"{self.split}/{self.wnid}/{self.name}"


def find_images(source: Path, lists: Path | None = None) -> tuple[list[SourceImage], list[str]]:
    """The images of a copy, and its problems as far as names tell them.

    `source` holds one of
      (a) ImageNet's training images, <wnid>/*.JPEG or <wnid>.tar, with `lists`, the folder of the three few-shot lists;
      (b) 100 class folders (or tar files) of 600 images, or the few-shot layout: train/, val/ and test/ with 64, 16 and 20 of
          the class folders;
      (c) train/<wnid>/ and test/<wnid>/ (or val/<wnid>/) with 500 and 100 images a class: the images are split already.
    Raises `UserError` where `source` has none of these layouts.
    """
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder. Give the folder with the images; unpack an archive first. The few-shot pickles cannot be "
            "used: they hold 84x84 pixels without the images' names, and reading a pickle runs the code in it."
        )
    problems = []
    parts = [source / part for part in ("train", "val", "test") if (source / part).is_dir()]
    found = [_classes(part) for part in parts or [source]]
    few_shot = len(parts) == 3 and sum(map(len, found)) == len(set().union(*found))
    if parts and (
        lists is not None or (not few_shot and (len(parts) != 2 or parts[0].name != "train"))
    ):
        raise UserError(
            f"{source} holds {names(parts)}. Expected are class folders alone (with --lists), train/, val/ and test/ with 64, "
            "16 and 20 different classes, or train/ and test/ (or val/) with the same classes."
        )
    if not any(found):
        raise UserError(
            f"{source} holds no class folders of mini-ImageNet; it holds {names(source.iterdir()) or 'nothing'}. Give a folder "
            "with class folders (n01532829, ...), their tar files (n01532829.tar, ...), or train/ and test/."
        )
    if lists is not None:
        return _listed_images(_read_lists(lists, problems), found[0], problems), problems
    splits = ("train", "test") if len(parts) == 2 else [None] * len(found)
    images = []
    for classes, split in zip(found, splits, strict=True):
        for path in classes.values():
            images += _class_images(path, problems, split)
    return images, problems


def names(paths, limit: int = 5) -> str:
    """The first names of many paths, and how many more there are."""
    every = sorted(path if isinstance(path, str) else path.name for path in paths)
    return ", ".join(every[:limit]) + (
        f" and {len(every) - limit:,} more" if len(every) > limit else ""
    )


def _classes(folder: Path) -> dict[str, Path]:
    """{wnid: its folder or tar file}; where there are both, the folder."""
    classes = {}
    try:
        for entry in entries(folder):
            if match := re.fullmatch(r"(n\d{8})(\.tar)?", entry.name):
                classes.setdefault(match[1], Path(entry.path))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): change its permissions."
        ) from error
    return classes


def _class_images(path: Path, problems: list[str], split: str | None = None) -> list[SourceImage]:
    """All files of a class folder or tar file; whether they are images is found when they are decoded."""
    wnid = path.name[:9]
    try:
        if path.suffix != ".tar":
            return [
                SourceImage(wnid, e.name, Path(e.path), e.stat().st_size, 0, split)
                for e in entries(path)
            ]
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile()]
        return [
            SourceImage(wnid, Path(m.name).name, path, m.size, m.offset_data, split)
            for m in members
        ]
    except (OSError, tarfile.TarError) as error:
        problems.append(
            f"{path}: cannot be read ({error}). Download it again; unpack a compressed one."
        )
        return []


def _read_lists(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """{wnid: names} of the three lists."""
    listed = {}
    for path in (folder / file for file in LISTS):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                f"{path}: {error}; train.csv, val.csv and test.csv of Ravi and Larochelle are needed"
            )
            continue
        for number, line in enumerate(lines, 1):
            if match := LISTED.fullmatch(line):
                listed.setdefault(match[2], []).append(match[1])
            elif (number, line) != (1, "filename,label"):
                problems.append(
                    f"{path}, line {number}: {line[:60]!r} is not like n0153282900000005.jpg,n01532829"
                )
    return listed


def _listed_images(
    listed: dict, classes: dict[str, Path], problems: list[str]
) -> list[SourceImage]:
    """The listed images, under their listed names; other classes are not read."""
    chosen = []
    for wnid in (wnid for wnid in listed if wnid in classes):
        images = _class_images(classes[wnid], problems)
        if images and all(IMAGENET.fullmatch(image.name) for image in images):
            if len(images) < FEWEST_IN_IMAGENET:
                problems.append(
                    f"{wnid}: {len(images)} images, where ImageNet has at least {FEWEST_IN_IMAGENET} of a class. The numbers in "
                    "the lists count all of them: with one missing, wrong images would be taken. Complete the class."
                )
                continue
            images.sort(key=lambda image: int(IMAGENET.fullmatch(image.name)[1]))
            have = {f"{wnid}{number:08}": image for number, image in enumerate(images, 1)}
        else:
            have = {Path(image.name).stem.lower(): image for image in images}
        wanted = {name: have.get(Path(name).stem.lower()) for name in listed[wnid]}
        if missing := [name for name, image in wanted.items() if image is None]:
            problems.append(f"{wnid}: {len(missing)} listed images are not there: {names(missing)}")
        chosen += [image._replace(name=name) for name, image in wanted.items() if image is not None]
    return chosen
