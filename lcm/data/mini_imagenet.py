"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet from the copies that are in use.

O. Vinyals et al., "Matching Networks for One Shot Learning" (2016), chose 100 classes of ImageNet
and 600 images of each. Copies usually follow S. Ravi and H. Larochelle, "Optimization as a Model
for Few-Shot Learning" (2017): parts of 64, 16 and 20 classes, and names such as
n0153282900000005.jpg, a WordNet id and a running number.

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
WNID = re.compile(r"n\d{8}")
IN_ONE_FOLDER = re.compile(r"(n\d{8})\d{8}\.(?:jpg|jpeg|png)", re.I)


def prepare(source, destination, allow_partial=False) -> str:
    """Make the prepared set `destination` from the copy `source`. Returns a report.

    `find_images` lists the layouts of copies. One that is not split has the first 500 images of
    each class, in the order of their numbers, for training.
    allow_partial: fewer classes and other counts are accepted; five sixths of a class are for
    training then.

    Images are copied byte for byte; the data set names those that cannot be decoded. A `UserError`
    names all problems. `destination` appears once it is complete; one that holds anything is
    refused first.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser().absolute()
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise UserError(
            f"{destination} is a file or holds files already: delete it to prepare the set anew, "
            "or give another destination"
        )
    try:
        halves, rule = find_images(source)
        if problems := _class_problems(**halves, allow_partial=allow_partial):
            raise listed(
                f"{source} cannot be used as it is (--allow-partial accepts fewer images):",
                problems,
            )
        files = {
            f"{half}/{wnid}/{name}": file
            for half, classes in halves.items()
            for wnid, images in classes.items()
            for name, file in images.items()
        }
        _copy(files, destination)
    except OSError as error:
        raise UserError(
            f"{error}. Give the folder with the images (unpack an archive first), and a place with "
            "room for them."
        ) from error
    train, test = (sum(map(len, classes.values())) for classes in halves.values())
    return f"{destination}: {train:,} training and {test:,} test images ({rule})"


def find_images(source: Path):
    """({"train": images, "test": images}, the rule of the split) of a copy.

    `source` holds one of
      (a) 100 class folders of 600 images, or the few-shot layout: train/, val/ and test/ with 64,
          16 and 20 of the class folders;
      (b) train/<wnid>/ and test/<wnid>/ (or val/<wnid>/) with 500 and 100 images a class: the
          images are split already;
      (c) all images in one folder under names that tell their classes: images/*.jpg.
    Raises `UserError` where `source` has none of these layouts, `OSError` where it cannot be read.
    """
    parts = [part for part in ("train", "val", "test") if (source / part).is_dir()]
    found = [_in_folders(source / part) for part in parts or [""]]
    images = {wnid: files for classes in found for wnid, files in classes.items()}
    # What is used: the parts, else class folders, else images/.
    unused = {path.name for path in entries(source) if path.is_dir()}
    unused -= set(parts or images or ["images"])
    note = f"; NOT USED: {', '.join(sorted(unused))}" if unused else ""
    if len(parts) == 2 and parts[0] == "train":
        return dict(zip(PER_CLASS, found, strict=True)), f"the copy's own split{note}"
    # Without a common class the union has as many classes as the parts have in all.
    few_shot = len(parts) == 3 and len(images) == sum(map(len, found))
    if parts and not few_shot:
        raise UserError(
            f"{source} holds {', '.join(parts)}. Expected are class folders alone, train/, val/ "
            "and test/ with 64, 16 and 20 different classes, or train/ and test/ (or val/) with "
            "the same classes."
        )
    return _split(images or _in_one_folder(source)), f"the first 500 of 600 of each class{note}"


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
        if match := IN_ONE_FOLDER.fullmatch(file.name):
            images[match[1]][file.name] = file
    if not images:
        raise UserError(
            f"{source} holds no images of mini-ImageNet. Give a folder with class folders "
            "(n01532829, ...; unpack tar files), train/ and test/, or images/ with "
            "n0153282900000005.jpg, ... The few-shot pickles cannot be used: they hold 84x84 "
            "pixels without the images' names."
        )
    return images


def _split(images: dict) -> dict:
    """Each class split, the first 500 of 600 for training, by number: _5.JPEG before _10.JPEG."""

    def by_number(item):
        # Text and numbers take turns, text first: the lists never compare one with the other.
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
        f"{wnid} is not a class of mini-ImageNet"
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
        # Replaces an empty folder; fails where somebody has filled it meanwhile.
        draft.rename(destination)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
