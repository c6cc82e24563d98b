"""Data sets stored as class folders, train/<class>/* and test/<class>/*."""

import os
from pathlib import Path

from lcm.errors import UserError

SPLITS = ("train", "test")
IGNORED = ("Thumbs.db", "desktop.ini", "__MACOSX")  # written by file managers


def entries(folder) -> list[os.DirEntry]:
    """What a folder holds, sorted by name, without hidden files and those of file managers."""
    with os.scandir(folder) as found:
        kept = [
            entry for entry in found if not entry.name.startswith(".") and entry.name not in IGNORED
        ]
    return sorted(kept, key=lambda entry: entry.name)


def read_class_folders(root: Path, remedy: str) -> dict[str, dict[str, list[os.DirEntry]]]:
    """{"train": {class: its files}, "test": {class: its files}}, sorted by name.

    Raises `UserError`, which ends with `remedy`: folders that cannot be read, classes with images in one split only.
    """
    found = {}
    try:
        for split in SPLITS:
            classes = {
                folder.name: entries(folder) for folder in entries(root / split) if folder.is_dir()
            }
            found[split] = {name: files for name, files in classes.items() if files}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}). {remedy}") from error
    train, test = found.values()
    in_one = sorted(train.keys() ^ test.keys())
    problems = [f"{name}: images only in {'train' if name in train else 'test'}" for name in in_one]
    if problems or not train:
        raise UserError(
            f"{root}: train and test must hold images of the same classes; {'; '.join(problems) or 'there are none'}. {remedy}"
        )
    return found
