"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet from the copies that are in use.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet
and 600 images of each. The usual lists of them are those of S. Ravi and H. Larochelle,
"Optimization as a Model for Few-Shot Learning" (2017): train.csv, val.csv and test.csv with 64, 16
and 20 classes. A name in a list is a WordNet id and a running number: n0153282900000005.jpg is the
fifth training image of n01532829 in ImageNet, counted from 1 in the order of ImageNet's own numbers
(n01532829_<number>.JPEG).

The few-shot parts share no class; for classification every class is split, 500 + 100 images.

Here the images of a copy are {wnid: {name: file}}.
"""

import collections
import re
import shutil
from pathlib import Path

from tqdm import tqdm

from lcm.data.folder import entries
from lcm.data.wnids import WNIDS
from lcm.errors import UserError, listed

PER_CLASS = {"train": 500, "test": 100}  # images of a class
LISTS = ("train.csv", "val.csv", "test.csv")
# Training images of a class of ImageNet: from 732 to 1,300, in most classes 1,300.
FEWEST_IN_IMAGENET, MOST_IN_IMAGENET = 732, 1300
WNID = re.compile(r"n\d{8}")
LISTED = re.compile(r"((n\d{8})\d{8}\.(?:jpg|jpeg|png))", re.I)
IMAGENET = re.compile(r"n\d{8}_(\d+)\.jpe?g", re.I)


def prepare(source, destination, lists=None, allow_partial=False) -> str:
    """Make the prepared set `destination` from the copy `source`. Returns a report.

    `find_images` lists the layouts of copies. One that is not split has the first 500 images of
    each class, in the order of their numbers, for training.
    allow_partial: fewer classes and other counts are accepted; five sixths of a class are for
    training then.

    Images are copied byte for byte; the data set names those that cannot be decoded. A `UserError`
    names all problems. `destination` appears once it is complete; one that holds anything is
    refused first.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(
            f"{destination} is a file or holds files already: delete it to prepare the set anew, "
            "or give another destination"
        )
    problems, notes = [], []
    try:
        halves, rule = find_images(source, lists, problems, notes)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error
    problems += _class_problems(halves["train"], halves["test"], allow_partial)
    if problems:
        title = f"{source} cannot be used as it is (--allow-partial accepts an incomplete copy):"
        raise listed(title, problems)
    files = {
        f"{half}/{wnid}/{name}": file
        for half, classes in halves.items()
        for wnid, images in classes.items()
        for name, file in images.items()
    }
    try:
        _copy(files, destination)
    except OSError as error:
        raise UserError(
            f"{destination} cannot be made: {error}. Make room, or give another destination."
        ) from error
    count = {half: sum(map(len, classes.values())) for half, classes in halves.items()}
    lines = [
        f"{destination}: {len(halves['train'])} classes, {count['train']:,} training and "
        f"{count['test']:,} test images ({rule})",
        *(f"WARNING: {note}" for note in notes),
    ]
    return "\n".join(lines)


def find_images(source: Path, lists, problems: list, notes: list):
    """({"train": images, "test": images}, the rule of the split) of a copy.

    Its problems, as far as names tell them, and notes go to the lists. `source` holds one of
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
            "The few-shot pickles cannot be used: they hold 84x84 pixels without the images' "
            "names, and reading a pickle runs the code in it."
        )
    parts = [part for part in ("train", "val", "test") if (source / part).is_dir()]
    found = [_in_folders(source / part) for part in parts or [""]]
    images = {wnid: files for classes in found for wnid, files in classes.items()}
    few_shot = len(parts) == 3 and len(images) == sum(map(len, found))
    split = len(parts) == 2 and parts[0] == "train"
    if parts and (lists is not None or not (few_shot or split)):
        raise UserError(
            f"{source} holds {names(parts)}. Expected are class folders alone (with --lists), "
            "train/, val/ and test/ with 64, 16 and 20 different classes, or train/ and test/ (or "
            "val/) with the same classes."
        )
    others = {path.name for path in entries(source) if path.is_dir()}
    if unused := others - set(parts or images or ["images"]):
        notes.append(f"not used: the folders {names(unused)} of {source}")
    if split:
        return dict(zip(PER_CLASS, found, strict=True)), "the copy's own split"
    if not images:
        images = _in_one_folder(source)
    elif lists is not None:
        listed = _read_lists(Path(lists).expanduser(), problems)
        images = _listed_images(listed, images, problems, notes)
    return _split(images), "the first 500 of 600 of each class"


def names(every, limit: int = 5) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(every) - limit:,} more" if len(every) > limit else ""
    return ", ".join(sorted(every)[:limit]) + more


def _in_folders(source: Path) -> dict:
    """The images of class folders: all files in them."""
    return {
        folder.name: {file.name: file for file in entries(folder)}
        for folder in entries(source)
        if WNID.fullmatch(folder.name)
    }


def _in_one_folder(source: Path) -> dict:
    """The images of one folder, whose names tell their classes. Raises `UserError` for none."""
    folder = source / "images" if (source / "images").is_dir() else source
    images = collections.defaultdict(dict)
    for file in entries(folder):
        if match := LISTED.fullmatch(file.name):
            images[match[2]][file.name] = file
    if not images:
        raise UserError(
            f"{source} holds no class folders of mini-ImageNet; it holds "
            f"{names([path.name for path in entries(source)]) or 'nothing'}. Give a folder with "
            "class folders (n01532829, ...; unpack tar files), train/ and test/, or images/ with "
            "n0153282900000005.jpg, ..."
        )
    return images


def _read_lists(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """{wnid: names} of the three lists."""
    listed = collections.defaultdict(list)
    for path in (folder / file for file in LISTS):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            name, _, wnid = line.partition(",")
            if (match := LISTED.fullmatch(name)) and match[2] == wnid:
                listed[wnid].append(name)
            elif (number, line) != (1, "filename,label"):
                like = "n0153282900000005.jpg,n01532829"
                problems.append(f"{path}, line {number}: {line[:60]!r} is not like {like}")
    return listed


def _listed_images(listed: dict, images: dict, problems: list, notes: list) -> dict:
    """The listed images, under their listed names."""
    chosen = {}
    for wnid in listed.keys() & images.keys():
        files = images[wnid]
        numbers = {name: IMAGENET.fullmatch(name) for name in files}
        if all(numbers.values()):  # ImageNet itself: a listed number counts its images
            _check_imagenet(wnid, len(files), problems, notes)
            ordered = sorted(files, key=lambda name: int(numbers[name][1]))
            have = {f"{wnid}{i:08}": files[name] for i, name in enumerate(ordered, 1)}
        else:
            have = {Path(name).stem.lower(): file for name, file in files.items()}
        wanted = {name: have.get(Path(name).stem.lower()) for name in listed[wnid]}
        if missing := [name for name, file in wanted.items() if file is None]:
            problems.append(f"{wnid}: {len(missing)} listed images are not there: {names(missing)}")
        chosen[wnid] = wanted
    return chosen


def _check_imagenet(wnid: str, count: int, problems: list, notes: list) -> None:
    """Whether a class of ImageNet may be complete: with an image missing others would be taken."""
    if not FEWEST_IN_IMAGENET <= count <= MOST_IN_IMAGENET:
        problems.append(
            f"{wnid}: {count} images, where ImageNet has {FEWEST_IN_IMAGENET} to "
            f"{MOST_IN_IMAGENET} of a class. The numbers in the lists count all of them: "
            "with one missing, wrong images would be taken. Complete the class."
        )
    elif count != MOST_IN_IMAGENET:
        notes.append(
            f"{wnid}: {count} images; most classes of ImageNet have {MOST_IN_IMAGENET}, some "
            "fewer. If your copy lacks one, every listed number after it took a wrong image: "
            "compare with the official archive of the class"
        )


def _split(images: dict) -> dict:
    """Each class split, the first 500 of 600 for training, by number: _5.JPEG before _10.JPEG."""

    def by_number(item):
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", item[0])]

    halves = {"train": {}, "test": {}}
    for wnid, files in images.items():
        ordered = sorted(files.items(), key=by_number)
        train = len(ordered) * PER_CLASS["train"] // sum(PER_CLASS.values())
        halves["train"][wnid] = dict(ordered[:train])
        halves["test"][wnid] = dict(ordered[train:])
    return halves


def _class_problems(train: dict, test: dict, allow_partial: bool) -> list[str]:
    """Only classes of mini-ImageNet, and 500 + 100 images of each of the 100."""
    problems = [
        f"{wnid} is not a class of mini-ImageNet (ImageNet itself needs --lists)"
        for wnid in sorted((train.keys() | test.keys()) - set(WNIDS))
    ]
    expected = "{train} + {test}".format(**PER_CLASS)
    for wnid in () if allow_partial else WNIDS:
        found = f"{len(train.get(wnid, ()))} + {len(test.get(wnid, ()))}"
        if found != expected:
            problems.append(f"{wnid}: {found} training + test images, {expected} expected")
    return problems


def _copy(files: dict[str, Path], destination: Path) -> None:
    """Copy files to their paths below `destination`, which appears at the end."""
    draft = destination.with_name(f".{destination.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    try:
        for name, file in tqdm(files.items(), "copying", unit="image"):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, draft / name)
        draft.rename(destination)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
