"""The images of a prepared mini-ImageNet folder, checked against its manifest where there is one."""

import csv
import hashlib
from pathlib import Path

from PIL import Image

from lcm.data.class_folders import read_class_folders
from lcm.data.mini_imagenet.copies import PER_CLASS
from lcm.errors import UserError

PREPARE = "scripts/prepare_mini_imagenet.py"


def list_images(root: Path):
    """(files, digests, stamp, fingerprint) of the images of `root`/train/<class>/* and `root`/test/<class>/*.

    files        paths below `root`, train/... before test/..., sorted by class and name
    digests      their SHA-256 in the manifest; None without a manifest
    stamp        changes when a file does
    fingerprint  in hex; the same on every machine

    Raises `UserError`: folders or files that cannot be read, or that differ from the manifest.
    """
    found = read_class_folders(
        root,
        f"data.root={root} should hold train/<wnid>/* and test/<wnid>/* of mini-ImageNet; python {PREPARE} COPY {root} makes "
        "them from a copy of it.",
    )
    try:
        statuses = {
            f"{split}/{name}/{file.name}": file.stat()
            for split, classes in found.items()
            for name, files in classes.items()
            for file in files
        }
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); run {PREPARE} on the copy."
        ) from error
    files, manifest = list(statuses), root / "manifest.csv"
    if manifest.exists():
        digests = _read_manifest(
            manifest, {file: status.st_size for file, status in statuses.items()}
        )
        fingerprint = hashlib.sha256(manifest.read_bytes()).hexdigest()
        return files, [digests[file] for file in files], fingerprint, fingerprint
    sizes = "".join(f"{file} {status.st_size}\n" for file, status in statuses.items())
    times = "".join(f"{status.st_mtime_ns}\n" for status in statuses.values())
    return files, None, sizes + times, hashlib.sha256(sizes.encode()).hexdigest()


def _read_manifest(manifest: Path, sizes: dict[str, int]) -> dict[str, str]:
    """{file: SHA-256}; raises `UserError` where files or `sizes` (in bytes) differ from the manifest's."""
    try:
        with open(manifest, newline="", encoding="utf-8") as lines:
            rows = {row["path"]: row for row in csv.DictReader(lines)}
        listed = {file: int(row["size"]) for file, row in rows.items()}
        digests = {file: row["sha256"] for file, row in rows.items()}
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{manifest} is damaged ({type(error).__name__}: {error}); run {PREPARE} again."
        ) from error
    problems = [
        f"{file}: {sizes.get(file, 'no')} bytes instead of {listed.get(file, 'no')}"
        for file in sorted(listed | sizes)
        if sizes.get(file) != listed.get(file)
    ]
    if problems:
        shown = "\n  ".join(
            problems[:20] + [f"and {len(problems) - 20} more"] * (len(problems) > 20)
        )
        raise UserError(
            f"{manifest.parent} differs from its manifest.csv; restore or remove the files, or run {PREPARE} again:\n  {shown}"
        )
    return digests


def notes_on(root: Path, files: list[str]) -> list[str]:
    """What a reader of the results must know: that the copy is not complete, or has small images."""
    notes = []
    count = {split: sum(file.startswith(f"{split}/") for file in files) for split in PER_CLASS}
    first_of_each = {file.split("/")[1]: file for file in reversed(files)}
    classes = len(first_of_each)
    whole = {split: 100 * number for split, number in PER_CLASS.items()}
    if count != whole or classes != 100:
        notes.append(
            f"a part of mini-ImageNet: {classes} classes, {count['train']:,} + {count['test']:,} images, where the whole has 100 "
            f"classes, {whole['train']:,} + {whole['test']:,} images; accuracies are not those of mini-ImageNet"
        )
    sizes = []
    for file in first_of_each.values():
        try:
            with Image.open(root / file) as image:
                sizes.append(image.size)
        except Exception:  # reported when the images are decoded
            continue
    width, height = sorted(sizes, key=min)[len(sizes) // 2] if sizes else (224, 224)
    if min(width, height) < 224:
        notes.append(
            f"a copy in low resolution: images of {width}x{height}, where the paper trains at 224x224; every view is enlarged, "
            "and accuracies compare neither with the paper's nor with those of full-size copies"
        )
    return notes
