"""The images of a prepared mini-ImageNet folder, checked against its manifest where there is one."""

import csv
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lcm.data.mini_imagenet.copies import IMAGES, LITTER, names
from lcm.errors import UserError

SPLITS = {"train": 500, "test": 100}  # images of a class
PREPARE = "scripts/prepare_mini_imagenet.py"


class Listing(NamedTuple):
    files: list[str]  # the images as paths below the root, train/... before test/..., sorted by class and name
    digests: list[str] | None  # their SHA-256 by the manifest
    stamp: str  # changes when a file does
    fingerprint: str  # in hex; the same on every machine


def list_images(root: Path) -> Listing:
    manifest = root / "manifest.csv"
    found = {split: _class_folders(root, split) for split in SPLITS}  # {split: {class: entries}}
    problems = [
        f"{name}: images only in {split}"
        for split, other in (("train", "test"), ("test", "train"))
        for name in sorted(found[split].keys() - found[other].keys())
    ]
    if problems or not found["train"]:
        raise UserError(
            f"{root}: train and test must hold images of the same classes; {'; '.join(problems) or 'there are none'}. "
            f"{PREPARE} makes such a folder from other copies."
        )
    try:
        files = {
            f"{split}/{name}/{file.name}": file.stat()
            for split in SPLITS
            for name in found[split]
            for file in found[split][name]
        }
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); run {PREPARE} on the copy.") from error
    if manifest.exists():
        digests = _read_manifest(manifest, {file: status.st_size for file, status in files.items()})
        fingerprint = hashlib.sha256(manifest.read_bytes()).hexdigest()
        return Listing(list(files), [digests[file] for file in files], fingerprint, fingerprint)
    strange = [file for file in files if not file.lower().endswith(IMAGES)]
    if strange:
        raise UserError(
            f"{root} holds files that are no images: {names(strange)}. Remove them, or run {PREPARE} on the copy."
        )
    listed = "".join(f"{file} {status.st_size}\n" for file, status in files.items())
    times = "".join(f"{status.st_mtime_ns}\n" for status in files.values())
    return Listing(list(files), None, listed + times, hashlib.sha256(listed.encode()).hexdigest())


def _class_folders(root: Path, split: str) -> dict[str, list[os.DirEntry]]:
    """{class: its files} of one half, both sorted by name; hidden files are passed over."""

    def entries(folder):
        try:
            with os.scandir(folder) as found:
                kept = (e for e in found if not e.name.startswith(".") and e.name not in LITTER)
                return sorted(kept, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be read ({error.strerror}). data.root={root} should hold train/<wnid>/* and test/<wnid>/* "
                f"of mini-ImageNet; python {PREPARE} COPY {root} makes them from a copy of it."
            ) from error

    classes = {folder.name: entries(folder.path) for folder in entries(root / split)}
    return {name: files for name, files in classes.items() if files}


def _read_manifest(manifest: Path, sizes: dict[str, int]) -> dict[str, str]:
    """{file: sha256}, for the files that are there and have the sizes that they should."""
    try:
        with open(manifest, newline="", encoding="utf-8") as lines:
            rows = {row["path"]: row for row in csv.DictReader(lines)}
        listed = {file: int(row["size"]) for file, row in rows.items()}
        digests = {file: row["sha256"] for file, row in rows.items()}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{manifest} is damaged ({type(error).__name__}: {error}); run {PREPARE} again.") from error
    problems = [f"{file}: missing" for file in sorted(listed.keys() - sizes.keys())]
    problems += [f"{file}: not in the manifest" for file in sorted(sizes.keys() - listed.keys())]
    problems += [
        f"{file}: {sizes[file]} bytes instead of {size}"
        for file, size in listed.items()
        if sizes.get(file, size) != size
    ]
    if problems:
        shown = "\n  ".join(problems[:20] + [f"and {len(problems) - 20} more"] * (len(problems) > 20))
        raise UserError(
            f"{manifest.parent} is not what its manifest.csv says; restore the files, or run {PREPARE} again:\n  {shown}"
        )
    return digests


def notes_on(root: Path, files: list[str]) -> list[str]:
    notes = []
    count = {split: sum(file.startswith(f"{split}/") for file in files) for split in SPLITS}
    classes = len({file.split("/")[1] for file in files})
    whole = {split: 100 * a_class for split, a_class in SPLITS.items()}
    if count != whole or classes != 100:
        notes.append(
            f"a part of mini-ImageNet: {classes} classes, {count['train']:,} + {count['test']:,} images, where the whole has 100 "
            f"classes, {whole['train']:,} + {whole['test']:,} images; accuracies are not those of mini-ImageNet"
        )
    first_of_each = {file.split("/")[1]: file for file in reversed(files)}
    sizes = []
    for file in first_of_each.values():
        try:
            with Image.open(root / file) as image:
                sizes.append(image.size)
        except Exception:  # decoding names unreadable files
            continue
    shorts = sorted(min(size) for size in sizes)
    if shorts and shorts[len(shorts) // 2] < 224:
        width, height = sorted(sizes, key=min)[len(sizes) // 2]
        notes.append(
            f"a copy in low resolution: images of {width}x{height}, where the paper trains at 224x224; every view is enlarged, "
            "and accuracies compare neither with the paper's nor with those of full-size copies"
        )
    return notes
