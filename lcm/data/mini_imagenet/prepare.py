"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet, and a manifest of them, from the copies that people have.

The few-shot halves of mini-ImageNet share no class; for classification every class is split, 500 images for training and 100
for the test. Nothing here imports torch.
"""

import collections
import csv
import dataclasses
import errno
import hashlib
import io
import os
import re
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lcm.data.mini_imagenet.cache import require_space, thread_pool
from lcm.data.mini_imagenet.copies import FEWEST_IN_IMAGENET, WNIDS, SourceImage, find_images, names
from lcm.errors import UserError
from lcm.files import write_atomically

PER_CLASS = {"train": 500, "test": 100}
FIELDS = ("path", "class", "split", "width", "height", "mode", "size", "sha256")  # of the manifest
MODES = ("RGB", "L", "P", "1", "LA", "RGBA", "PA", "CMYK", "YCbCr")  # what Pillow can convert to 8-bit RGB


def prepare(source, destination, lists=None, allow_partial=False) -> str:
    """Make the prepared set `destination` from the copy `source` (`find_images` says which). Returns a report.

    A copy that is not split has the first 500 images of each class, in the order of their numbers, for training.
    allow_partial: fewer classes and other counts are accepted; five sixths of a class are for training then.

    Images are decoded to check them, and copied byte for byte. All problems are named in one UserError, and then no manifest
    is written; the same call can be repeated.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    here, there = source.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(
            f"{destination} and {source} are the same or inside each other. Give a new folder as destination."
        )
    images, problems = find_images(source, Path(lists).expanduser() if lists is not None else None)
    problems += _name_problems(images)
    if not problems and not allow_partial:
        problems += _count_problems(images)
    _raise(source, problems)
    rule = "the copy's own split"
    if any(image.split is None for image in images):
        images, rule = _split(images), "the first 500 of 600 of each class"
    _raise(source, _split_problems(images))
    rows = _copy(images, source, destination)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["path"]))
    write_atomically(destination / "manifest.csv", table.getvalue().encode())
    return _report(destination, rows, rule)


def _raise(source: Path, problems: list[str]):
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise UserError(f"{source} cannot be used as it is, {count}:\n  " + "\n  ".join(problems))


def _name_problems(images: list[SourceImage]) -> list[str]:
    """Classes of mini-ImageNet, names that belong to their class, each once."""
    foreign = sorted({image.wnid for image in images} - set(WNIDS))
    problems = [f"not among the 100 classes of mini-ImageNet: {names(foreign)}"] if foreign else []
    same = collections.defaultdict(list)
    for image in images:
        match = re.match(r"(n\d{8})(_|\d{8}\.)", image.name)
        if match and match[1] != image.wnid:
            problems.append(f"{image}: an image of {match[1]} by its name, in class {image.wnid}")
        same[image.wnid, Path(image.name).stem.lower()].append(image)
    twins = [found for found in same.values() if len(found) > 1]
    return problems + [f"the same name twice: {', '.join(map(str, found))}. Keep one." for found in twins]


def _count_problems(images: list[SourceImage]) -> list[str]:
    """500 + 100 images of each of the 100 classes."""
    counts = collections.Counter((image.wnid, image.split) for image in images)
    missing = set(WNIDS) - {wnid for wnid, _ in counts}
    problems = [f"{len(missing)} of {len(WNIDS)} classes are missing: {names(missing, 100)}"] if missing else []
    for (wnid, split), number in sorted(counts.items()):
        expected = PER_CLASS[split] if split else sum(PER_CLASS.values())
        if number != expected:
            problems.append(f"{wnid}: {number} images{f' in {split}' if split else ''}, {expected} expected")
    if max(counts.values(), default=0) >= FEWEST_IN_IMAGENET:
        problems.append("This looks like ImageNet itself: say which images are meant with --lists FOLDER.")
    if problems:
        problems.append(
            "(--allow-partial prepares an incomplete copy; accuracies on it are not those of mini-ImageNet.)"
        )
    return problems


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
        split += [dataclasses.replace(m, split="train" if i < train else "test") for i, m in enumerate(members)]
    return split


def _split_problems(images: list[SourceImage]) -> list[str]:
    """Every class has images in both train and test."""
    splits = collections.defaultdict(set)
    for image in images:
        splits[image.wnid].add(image.split)
    alone = sorted((wnid, *found) for wnid, found in splits.items() if len(found) == 1)
    return [f"{wnid}: images only in {split}; a class needs some in train and some in test" for wnid, split in alone]


def _copy(images: list[SourceImage], source: Path, destination: Path) -> list[dict]:
    """Decode every image to check it, and copy it: the manifest's rows."""
    planned = {destination / image.path for image in images}
    try:
        present = [path for split in PER_CLASS for path in (destination / split).rglob("[!.]*") if path.is_file()]
        if strangers := sorted(path.relative_to(destination).as_posix() for path in present if path not in planned):
            raise UserError(
                f"{destination} holds {len(strangers):,} files that do not belong to this set: {names(strangers)}. Give an "
                "empty folder, or remove them."
            )
        destination.mkdir(parents=True, exist_ok=True)
        require_space(destination, sum(image.size for image in images) - sum(path.stat().st_size for path in present))
        for folder in {path.parent for path in planned}:
            folder.mkdir(parents=True, exist_ok=True)
        with thread_pool() as pool:
            copied = pool.map(lambda image: _copy_one(image, destination / image.path), images)
            results = list(tqdm(copied, total=len(images), desc="images", unit="image", disable=None))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space for {destination} ({error.strerror}). Make room and repeat the command."
            ) from error
        raise UserError(f"{destination} cannot be written: {error}. Give another destination.") from error
    rows = [result for result in results if isinstance(result, dict)]
    problems = [result for result in results if isinstance(result, str)]
    small = [row["path"] for row in rows if (row["width"], row["height"]) == (84, 84)]
    if 0.01 * len(rows) < len(small) < 0.99 * len(rows):
        problems.append(f"two copies mixed: {len(small):,} images of 84x84 (such as {small[0]}) among {len(rows):,}.")
    _raise(source, problems)
    return rows


def _copy_one(image: SourceImage, target: Path):
    """Read, decode and copy one image: its row of the manifest, or a line that says what is wrong with it."""
    try:
        with open(image.source, "rb") as file:
            file.seek(image.offset)
            data = file.read(image.size)
    except OSError as error:
        return f"{image}: cannot be read: {error.strerror}"
    try:
        width, height, mode = _decoded(data)
    except Exception as error:  # Pillow raises many kinds
        return f"{image}: {error or type(error).__name__}"
    draft = target.with_name(f".{target.name}.draft")
    draft.write_bytes(data)
    os.replace(draft, target)
    digest = hashlib.sha256(data).hexdigest()
    values = (image.path, image.wnid, image.split, width, height, mode, len(data), digest)
    return dict(zip(FIELDS, values, strict=True))


def _decoded(data: bytes) -> tuple[int, int, str]:
    """Width, height and mode of an image that can be decoded to its end; raises otherwise."""
    if not data:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError:
        raise ValueError("no image: its first bytes are of no known image format") from None
    if image.mode not in MODES:
        raise ValueError(f"pixels of mode {image.mode}, which are not 8-bit: convert it")
    return image.width, image.height, image.mode


def _report(destination: Path, rows: list[dict], rule: str) -> str:
    count = collections.Counter(row["split"] for row in rows)
    sizes = collections.Counter((row["width"], row["height"]) for row in rows)
    (width, height), common = sizes.most_common(1)[0]
    smallest = min(rows, key=lambda row: min(row["width"], row["height"]))
    lines = [
        f"{destination}: {len({row['class'] for row in rows})} classes, {count['train']:,} training and {count['test']:,} test "
        f"images ({rule}); manifest: {destination / 'manifest.csv'}",
        f"resolution: {len(sizes):,} different, most often {width}x{height} ({common:,} images); smallest: "
        f"{smallest['width']}x{smallest['height']} ({smallest['path']})",
    ]
    for mode, paths in sorted(_grouped(rows, "mode").items()):
        if mode != "RGB":
            lines.append(f"converted to RGB when they are read: {len(paths)} images of mode {mode}: {', '.join(paths)}")
    lines += _duplicates(rows)
    short = sorted(min(row["width"], row["height"]) for row in rows)[len(rows) // 2]
    if short < 224:
        lines.append(
            f"\nWARNING: this copy is {width}x{height}. The paper trains at 224x224, on views cut from photographs of about "
            f"500x375.\nHere every view is enlarged {224 / short:.1f} times or more: accuracies compare neither with the "
            "paper's nor with those of full-size copies."
        )
    return "\n".join(lines)


def _grouped(rows: list[dict], key: str) -> dict[str, list[str]]:
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key]].append(row["path"])
    return groups


def _duplicates(rows: list[dict]) -> list[str]:
    groups = [sorted(paths) for paths in _grouped(rows, "sha256").values() if len(paths) > 1]
    if not groups:
        return ["byte-identical images: none"]
    labels = sum(len({path.split("/")[1] for path in paths}) > 1 for paths in groups)
    across = sum(len({path.split("/")[0] for path in paths}) > 1 for paths in groups)
    head = f"byte-identical images: {len(groups)} groups, {labels} under two labels, {across} in both train and test"
    return [head, *(f"  {' = '.join(paths)}" for paths in sorted(groups))]
