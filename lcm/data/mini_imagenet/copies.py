"""The copies of mini-ImageNet that people have, and which images are in them.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet and 600 images of each. The
lists that everybody uses are those of S. Ravi and H. Larochelle, "Optimization as a Model for Few-Shot Learning" (2017):
train.csv, val.csv and test.csv with 64, 16 and 20 classes. A name on them is a WordNet id and a running number:
n0153282900000005.jpg is the fifth training image of n01532829 in ImageNet, counted from 1 in the order of ImageNet's own
numbers (n01532829_<number>.JPEG).
"""

import csv
import dataclasses
import re
import tarfile
from pathlib import Path

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
LISTS = {"train.csv": 64, "val.csv": 16, "test.csv": 20}  # classes on each
FEWEST_IN_IMAGENET = 732  # training images of ImageNet's smallest class
LISTED = re.compile(r"(n\d{8})(\d{8})\.(jpg|jpeg|png)", re.I)
IMAGENET = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.I)
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")  # of file managers


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of a copy: its class, its name in the prepared set, and where its bytes are."""

    wnid: str
    name: str
    source: Path  # the image file, or the tar file that holds it
    size: int
    offset: int = 0  # where its bytes begin in `source`
    split: str | None = None  # train or test, where the copy says so

    def __str__(self):
        return f"{self.source}:{self.name}" if self.source.suffix == ".tar" else str(self.source)

    @property
    def path(self) -> str:
        """Its path in the prepared set."""
        return f"{self.split}/{self.wnid}/{self.name}"


def find_images(source: Path, lists: Path | None = None) -> tuple[list[SourceImage], list[str]]:
    """The images of a copy and everything that is wrong with it.

    `source` holds one of
      (a) ImageNet's training images, <wnid>/*.JPEG or <wnid>.tar, with `lists`, the folder of the three few-shot lists;
      (b) 100 class folders (or tar files) of 600 images, or the few-shot layout: train/, val/ and test/ with 64, 16 and 20 of
          the class folders;
      (c) train/<wnid>/ and test/<wnid>/ (or val/<wnid>/) with 500 and 100 images a class: the images are split already.
    Raises UserError for what is no such copy at all.
    """
    if not source.is_dir():
        raise UserError(
            f"{source} is no folder. Give the folder with the images; unpack an archive first. The few-shot pickles cannot be "
            "used: they hold 84x84 pixels without the images' names, and reading a pickle runs the code in it."
        )
    problems = []
    parts = [source / part for part in ("train", "val", "test") if (source / part).is_dir()]
    if lists is not None and parts:
        raise UserError(f"{source} holds {names(parts)}: with --lists give the folder of class folders.")
    if not parts:
        classes = _classes(source, problems)
        if not classes:
            raise UserError(
                f"{source} holds no class folders of mini-ImageNet; it holds {names(source.iterdir()) or 'nothing'}. Give a "
                "folder with class folders (n01532829, ...), their tar files (n01532829.tar, ...), or train/ and test/."
            )
        if lists is not None:
            return _listed(_read_lists(lists, problems), classes, problems), problems
        return [image for path in classes.values() for image in _class_images(path, problems)], problems
    found = {part.name: _classes(part, problems) for part in parts}
    few_shot = len(parts) == 3 and sum(map(len, found.values())) == len(set().union(*found.values()))
    if not few_shot and (len(parts) != 2 or "train" not in found):
        problems.append(
            f"{source}: {names(parts)} hold neither 64, 16 and 20 different classes (three folders) nor the same classes (train "
            "and one other)."
        )
    images = []
    for part, classes in found.items():
        split = None if few_shot else "train" if part == "train" else "test"
        for path in classes.values():
            images += [dataclasses.replace(image, split=split) for image in _class_images(path, problems)]
    return images, problems


def names(paths, limit: int = 5) -> str:
    """The first names of many paths, and how many more."""
    every = sorted(path if isinstance(path, str) else path.name for path in paths)
    return ", ".join(every[:limit]) + (f" and {len(every) - limit:,} more" if len(every) > limit else "")


def _visible(folder: Path, problems: list[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in LITTER)
    except OSError as error:
        problems.append(f"{folder}: cannot be read: {error.strerror}")
        return []


def _classes(folder: Path, problems: list[str]) -> dict[str, Path]:
    """{wnid: its folder or tar file}."""
    classes = {}
    for path in _visible(folder, problems):
        match = re.fullmatch(r"(n\d{8})(\.tar)?", path.name)
        if match is None:
            if path.is_dir():
                problems.append(f"{path}: {path.name!r} is no class: a WordNet id is n and eight digits")
            elif path.name.lower().endswith(IMAGES):
                problems.append(f"{path}: an image in no class folder")
        elif match[1] in classes:
            problems.append(f"{match[1]}: both {classes[match[1]]} and {path}: two copies mixed? Keep one.")
        else:
            classes[match[1]] = path
    return classes


def _class_images(path: Path, problems: list[str]) -> list[SourceImage]:
    """Everything in a class folder or tar file is taken for an image; decoding will tell."""
    wnid, images = path.name[:9], []
    try:
        if path.suffix == ".tar":
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        name = member.name.rsplit("/", 1)[-1]
                        images.append(SourceImage(wnid, name, path, member.size, member.offset_data))
            if images and images[-1].offset + images[-1].size > path.stat().st_size:
                raise tarfile.ReadError("it ends in the middle of an image")
        else:
            for file in _visible(path, problems):
                if file.is_file():
                    images.append(SourceImage(wnid, file.name, file, file.stat().st_size))
                else:
                    problems.append(f"{file}: not a file")
    except (OSError, tarfile.TarError) as error:
        problems.append(f"{path}: cannot be read ({error}). Download it again; unpack a compressed one.")
    if not images:
        problems.append(f"{path}: no images")
    return images


def _read_lists(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """{wnid: names} of the three lists."""
    listed = {}
    for file, classes in LISTS.items():
        path, here = folder / file, set()
        try:
            with open(path, newline="", encoding="utf-8") as lines:
                head, *rows = [*csv.reader(lines)] or [[]]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(f"{path}: {error}; train.csv, val.csv and test.csv of Ravi and Larochelle are needed")
            continue
        if head != ["filename", "label"]:
            problems.append(f"{path}: begins with {','.join(head)[:40]!r}, not with filename,label")
            continue
        for line, row in enumerate(rows, 2):
            name, wnid = row if len(row) == 2 else (",".join(row), None)
            match = LISTED.fullmatch(name)
            if match is None or match[1] != wnid:
                problems.append(f"{path}, line {line}: {','.join(row)} is not like n0153282900000005.jpg,n01532829")
            elif name in listed.get(wnid, ()):
                problems.append(f"{path}, line {line}: {name} is listed twice")
            else:
                listed.setdefault(wnid, []).append(name)
                here.add(wnid)
        if len(here) != classes:
            problems.append(f"{path}: {len(here)} classes, {classes} expected")
    return listed


def _listed(listed: dict, classes: dict[str, Path], problems: list[str]) -> list[SourceImage]:
    """The listed images, under their listed names; classes that are not on the lists are not looked into."""
    chosen = []
    for wnid, wanted in listed.items():
        if wnid not in classes:
            problems.append(f"{wnid}: on the lists, but neither {wnid}/ nor {wnid}.tar is there")
            continue
        images = _class_images(classes[wnid], problems)
        if images and all(IMAGENET.fullmatch(image.name) for image in images):
            if len(images) < FEWEST_IN_IMAGENET:
                problems.append(
                    f"{wnid}: {len(images)} images, where ImageNet has at least {FEWEST_IN_IMAGENET} of a class. The lists "
                    "count through all of them: with one missing, wrong images would be taken. Complete the class."
                )
                continue
            images.sort(key=lambda image: int(IMAGENET.fullmatch(image.name)[2]))
            have = {f"{wnid}{number:08}": image for number, image in enumerate(images, 1)}
        else:
            have = {Path(image.name).stem.lower(): image for image in images}
        if missing := [name for name in wanted if Path(name).stem.lower() not in have]:
            problems.append(f"{wnid}: {len(missing)} listed images are not there: {names(missing)}")
        found = (name for name in wanted if name not in missing)
        chosen += [dataclasses.replace(have[Path(name).stem.lower()], name=name) for name in found]
    return chosen
