"""The copies of mini-ImageNet that people have, and which pictures are in them.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet and 600 images of each. The
lists that everybody uses are those of S. Ravi and H. Larochelle, "Optimization as a Model for Few-Shot Learning" (2017):
train.csv, val.csv and test.csv with 64, 16 and 20 classes. A name on them is a WordNet id and a running number:
n0153282900000005.jpg is the fifth training image of n01532829 in ImageNet, counted from 1 in the order of ImageNet's own
numbers (n01532829_<number>.JPEG).
"""

import collections
import csv
import dataclasses
import os
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

WNID = re.compile(r"n\d{8}")
LISTED = re.compile(r"(n\d{8})(\d{8})\.(jpg|jpeg|png)", re.I)
IMAGENET = re.compile(r"(n\d{8})_(\d+)\.jpe?g", re.I)
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")
ARRAYS = (".pkl", ".pickle", ".p", ".npz", ".npy", ".pt", ".hdf5", ".h5")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image of a copy: its class, its name in the prepared set, and where its bytes are."""

    wnid: str
    name: str
    source: Path  # the image file, or the tar file that holds it
    size: int
    offset: int = 0  # where its bytes begin in `source`
    member: str | None = None  # its name in the tar file
    split: str | None = None  # train or test, where the copy says so

    def __str__(self):
        return f"{self.source}:{self.member}" if self.member else str(self.source)

    @property
    def path(self) -> str:
        """Where it lies in the prepared set."""
        return f"{self.split}/{self.wnid}/{self.name}"


class Copy:
    """A copy's pictures, everything that is wrong with it (`faults`) and what its owner should know (`notes`).

    `source` holds one of
      (a) ImageNet's training images, <wnid>/*.JPEG or <wnid>.tar, with `lists`, the folder of the three few-shot lists;
      (b) 100 class folders <wnid>/ of 600 images, or one folder with all 60,000, or the few-shot layout: train/, val/ and
          test/ with 64, 16 and 20 of the class folders;
      (c) train/<wnid>/ and test/<wnid>/ (or val/<wnid>/) with 500 and 100 images a class: then the pictures are split.
    Raises UserError for what is no such copy at all.
    """

    def __init__(self, source: Path, lists: Path | None = None):
        self.source, self.pictures, self.faults, self.notes = source, [], [], []
        _refuse_files(source)
        entries = self._entries(source)
        if [entry.name for entry in entries if entry.is_dir()] == ["images"]:  # as in the zip file with the three lists
            entries = [e for e in entries if not e.is_dir()] + self._entries(source / "images")
        folders = {entry.name: Path(entry.path) for entry in entries if entry.is_dir()}
        files = [entry for entry in entries if not entry.is_dir()]
        parts = {name: folders.pop(name) for name in ("train", "val", "test") if name in folders}
        tars = {e.name[:9]: Path(e.path) for e in files if re.fullmatch(r"n\d{8}\.tar", e.name)}
        loose = [entry for entry in files if entry.name.lower().endswith(IMAGES)]
        arrays = [entry for entry in files if entry.name.lower().endswith(ARRAYS)]
        if parts:
            folders.pop("cache", None)  # where training keeps decoded images
        if not (parts or folders or tars or loose):
            if arrays:
                _refuse_arrays(arrays[0].path)
            raise UserError(
                f"{source} holds no images of mini-ImageNet; it holds {some([e.name for e in entries]) or 'nothing'}. Give a "
                "folder with class folders (n01532829, ...), their tar files (n01532829.tar, ...), or train/ and test/."
            )
        used = {*tars.values(), *(Path(entry.path) for entry in loose)}
        self.notes += [
            f"ignored: {e.path}" for e in files if Path(e.path) not in used and not e.name.startswith("manifest.")
        ]
        if lists is not None and parts:
            raise UserError(
                f"{source} holds {', '.join(parts)}: with --lists give the class folders, {source / 'train'}."
            )
        if lists is not None:
            self._take_listed(self._read_lists(lists), self._classes(folders, tars, loose))
        elif parts:
            beside = [*folders, *tars, *(entry.name for entry in loose)]
            if beside:
                self.faults.append(f"{source}: {some(beside)} beside {', '.join(parts)}: two copies mixed? Keep one.")
            self._take_parts(parts)
        else:
            for take in self._classes(folders, tars, loose).values():
                self.pictures += take()
        if not self.pictures and not self.faults:
            self.faults.append(f"{source}: no images in it")

    # Each class of the source as a function that finds its pictures: with lists, only the listed classes are looked into.

    def _classes(self, folders, tars, loose) -> dict:
        classes = {
            wnid: lambda wnid=wnid, folder=folder: self._in_folder(wnid, folder) for wnid, folder in folders.items()
        }
        for wnid, tar in tars.items():
            if wnid in folders:
                self.faults.append(f"{wnid}: both {folders[wnid]} and {tar}: two copies mixed? Keep one.")
            classes[wnid] = lambda wnid=wnid, tar=tar: self._in_tar(wnid, tar)
        by_name = collections.defaultdict(list)
        for entry in loose:
            match = LISTED.fullmatch(entry.name) or IMAGENET.fullmatch(entry.name)
            if match is None:
                self.faults.append(f"{entry.path}: in no class folder, and its name does not begin with a class")
            elif match[1] in classes:
                self.faults.append(f"{entry.path}: beside the class folder {match[1]}: two copies mixed? Keep one.")
            else:
                by_name[match[1]].append(Picture(match[1], entry.name, Path(entry.path), entry.stat().st_size))
        return classes | {wnid: lambda pictures=pictures: pictures for wnid, pictures in by_name.items()}

    def _entries(self, folder: Path) -> list[os.DirEntry]:
        """The files and folders in a folder, sorted by name, without the litter of file managers."""
        kept = []
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.faults.append(f"{folder}: cannot be read: {error.strerror}")
            return kept
        for entry in entries:
            try:
                if entry.name.startswith(".") or entry.name in LITTER:
                    self.notes.append(f"ignored: {entry.path}")
                elif entry.is_file() or entry.is_dir():
                    kept.append(entry)
                else:
                    what = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
                    self.faults.append(f"{entry.path}: {what}; remove it, or put the file there")
            except OSError as error:  # a loop of links
                self.faults.append(f"{entry.path}: cannot be read: {error.strerror}")
        return kept

    def _in_folder(self, wnid: str, folder: Path, split=None) -> list[Picture]:
        """Everything in a class folder is taken for an image; decoding will tell."""
        if not WNID.fullmatch(wnid):
            self.faults.append(f"{folder}: {wnid!r} is no class: a WordNet id is n and eight digits")
            return []
        entries = self._entries(folder)
        inner = [entry.path for entry in entries if entry.is_dir()]
        self.faults += [f"{path}: a folder in a class folder; move its images up, or remove it" for path in inner]
        files = [entry for entry in entries if not entry.is_dir()]
        if not files:
            self.faults.append(f"{folder}: no images")
        return [Picture(wnid, e.name, Path(e.path), e.stat().st_size, split=split) for e in files]

    def _in_tar(self, wnid: str, path: Path) -> list[Picture]:
        pictures = []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if member.isfile():
                        pictures.append(Picture(wnid, name, path, member.size, member.offset_data, member.name))
                    elif not member.isdir():
                        self.faults.append(f"{path}:{member.name}: no ordinary file")
            if pictures and pictures[-1].offset + pictures[-1].size > path.stat().st_size:
                raise tarfile.ReadError("it ends in the middle of an image")
            if not pictures:
                raise tarfile.ReadError("it holds no images")
        except (OSError, tarfile.TarError) as error:
            self.faults.append(
                f"{path}: no tar file that can be read ({error}). Fetch it again; unpack a compressed one."
            )
        return pictures

    def _take_parts(self, parts: dict):
        """(c); or, where train, val and test share no class, the few-shot layout, which is one set of class folders."""
        found = {}
        for part, folder in parts.items():
            found[part] = []
            for entry in self._entries(folder):
                if entry.is_dir():
                    found[part] += self._in_folder(entry.name, Path(entry.path), "train" if part == "train" else "test")
                else:
                    self.faults.append(f"{entry.path}: in no class folder")
        classes = [{picture.wnid for picture in pictures} for pictures in found.values()]
        self.pictures = [picture for pictures in found.values() for picture in pictures]
        if len(parts) == 3 and sum(map(len, classes)) == len(set().union(*classes)):
            self.pictures = [dataclasses.replace(picture, split=None) for picture in self.pictures]
        elif len(parts) == 3:
            self.faults.append(
                f"{self.source}: train, val and test hold the same classes; there are two halves here. Put one away."
            )
        elif len(parts) == 1 or "train" not in parts:
            self.faults.append(
                f"{self.source}: only {' and '.join(parts)}; train/ and test/ are needed. To split class folders, give the folder "
                "that holds them."
            )

    def _read_lists(self, folder: Path) -> dict[str, list[str]]:
        """{wnid: names} of the three lists."""
        listed, before = collections.defaultdict(list), {}
        for file, classes in LISTS.items():
            path = folder / file
            try:
                with open(path, newline="", encoding="utf-8") as lines:
                    head, *rows = list(csv.reader(lines)) or [[]]
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                why = getattr(error, "strerror", None) or error
                self.faults.append(f"{path}: {why}; train.csv, val.csv and test.csv of Ravi and Larochelle are needed")
                continue
            if head != ["filename", "label"]:
                self.faults.append(f"{path}: begins with {','.join(head)[:40]!r}, not with filename,label")
                continue
            here = set()
            for line, row in enumerate(rows, 2):
                name, label = row if len(row) == 2 else (",".join(row), None)
                match = LISTED.fullmatch(name)
                if label is None or match is None:
                    self.faults.append(
                        f"{path}, line {line}: {','.join(row)!r} is not like n0153282900000005.jpg,n01532829"
                    )
                elif match[1] != label:
                    self.faults.append(
                        f"{path}, line {line}: {name} is an image of {match[1]}, and listed under {label}"
                    )
                elif name in before:
                    self.faults.append(f"{path}, line {line}: {name} is listed twice, first in {before[name]}")
                else:
                    listed[label].append(name)
                    before[name] = f"{file}, line {line}"
                    here.add(label)
            if len(here) != classes:
                self.faults.append(f"{path}: {len(here)} classes, {classes} expected")
        return listed

    def _take_listed(self, listed: dict, classes: dict):
        for wnid, names in listed.items():
            if wnid in classes:
                self.pictures += self._choose(wnid, names, classes[wnid]())
            else:
                self.faults.append(f"{wnid}: on the lists, but neither {wnid}/ nor {wnid}.tar is in {self.source}")
        aside = sorted(classes.keys() - listed.keys())
        if aside:
            self.notes.append(f"left aside: {len(aside)} classes that are not on the lists ({some(aside)})")

    def _choose(self, wnid: str, names: list[str], pictures: list[Picture]) -> list[Picture]:
        """The listed ones of a class's pictures, under their listed names."""
        kinds = styles(pictures)
        if list(kinds) == ["listed"]:
            have = {picture.name.lower(): picture for picture in pictures}
            chosen = {name: have[name.lower()] for name in names if name.lower() in have}
        elif list(kinds) == ["imagenet"]:
            if len(pictures) < FEWEST_IN_IMAGENET:
                self.faults.append(
                    f"{wnid}: {len(pictures)} images, where ImageNet has at least {FEWEST_IN_IMAGENET} of a class. The lists count "
                    "through all of them: with one missing, wrong images would be taken. Complete the class."
                )
                return []
            pictures = sorted(pictures, key=lambda picture: int(IMAGENET.fullmatch(picture.name)[2]))
            numbered = {name: int(LISTED.fullmatch(name)[2]) for name in names}
            chosen = {name: pictures[number - 1] for name, number in numbered.items() if 1 <= number <= len(pictures)}
        else:
            if pictures:
                self.faults.append(
                    f"{wnid}: {mixed(kinds) if len(kinds) > 1 else f'names like {pictures[0].name} are not known'}"
                )
            return []
        missing = [name for name in names if name not in chosen]
        if missing:
            self.faults.append(f"{wnid}: {len(missing)} listed images are not there: {', '.join(missing)}")
        return [dataclasses.replace(picture, name=name) for name, picture in chosen.items()]


def _refuse_files(source: Path):
    if not os.path.lexists(source):
        raise UserError(f"{source} does not exist. Give the folder with the images.")
    if source.name.lower().endswith(ARRAYS) and not source.is_dir():
        _refuse_arrays(source)
    if source.name.lower().endswith(ARCHIVES) and not source.is_dir():
        raise UserError(f"{source} is an archive: unpack it (tar -xf, unzip), then give the folder that comes out.")
    if not source.is_dir():
        raise UserError(f"{source} is no folder. Give the folder with the images.")


def _refuse_arrays(path):
    raise UserError(
        f"{path} is one of the few-shot pickles, which cannot be used: they hold 84x84 pixels without the images' names, so "
        "nobody could tell which 500 of a class are for training; files of one name hold different images; and loading a pickle "
        "runs the code in it. Find a copy with image files, or make one from ImageNet with --lists."
    )


def styles(pictures) -> dict[str, list[Picture]]:
    """{"listed" | "imagenet" | "other": the pictures that are named in this way}."""
    found = collections.defaultdict(list)
    for picture in pictures:
        style = (
            "listed" if LISTED.fullmatch(picture.name) else "imagenet" if IMAGENET.fullmatch(picture.name) else "other"
        )
        found[style].append(picture)
    return found


def mixed(kinds: dict) -> str:
    counts = ", ".join(f"{len(pictures)} images named like {pictures[0].name}" for pictures in kinds.values())
    return f"two copies mixed: {counts}. Keep one."


def some(names, limit: int = 5) -> str:
    """The first names of many, and how many more."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
