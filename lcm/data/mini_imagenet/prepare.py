"""Makes train/<wnid>/* and test/<wnid>/* of mini-ImageNet, and a manifest of them, from the copies that people have.

The few-shot halves of mini-ImageNet share no class; for classification every class is split, 500 images for training and 100
for the test. Nothing here imports torch.
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import os
import re
import shutil
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lcm.data.mini_imagenet.copies import FEWEST_IN_IMAGENET, WNIDS, Copy, Picture, mixed, some, styles
from lcm.errors import UserError

PER_CLASS = {"train": 500, "test": 100}
FIELDS = ("path", "class", "split", "width", "height", "mode", "size", "sha256")  # of the manifest
MODES = ("RGB", "L", "P", "1", "LA", "RGBA", "PA", "CMYK", "YCbCr")  # what Pillow can bring to 8-bit RGB


def prepare(source, destination, lists=None, split=None, seed=None, allow_partial=False) -> str:
    """Make, continue or check the prepared set `destination` from the copy `source` (`Copy` says which). Returns a report.

    split          "first": of each class the first 500 images in the order of their numbers are for training; "seeded": 500
                   drawn by `seed`; None: the copy's own split, or else "first"
    allow_partial  fewer classes and other counts are no fault; a split then takes five sixths of a class for training

    Images are copied byte for byte; where source and destination are the same folder, they stay where they are. Every fault is
    named in one UserError, and then no manifest is written; what was copied stays, and the same call goes on from there.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    if (split == "seeded") != (seed is not None):
        raise UserError("--split seeded and --seed N belong together: give both or none.")
    copy = Copy(source, Path(lists).expanduser() if lists is not None else None)
    pictures, rule = copy.pictures, "the copy's own split"
    faults = copy.faults + _name_faults(pictures)
    if not copy.faults and not allow_partial:
        faults += _count_faults(pictures, could_be_imagenet=lists is None)
    _raise(source, faults)
    if split is not None or any(picture.split is None for picture in pictures):
        rule = (
            "the first 500 of 600 of each class"
            if seed is None
            else f"500 of 600 of each class, drawn with seed {seed}"
        )
        pictures = _split(pictures, seed)
    _raise(source, _half_faults(pictures))
    in_place = _is_in_place(source, destination, pictures)
    if not in_place:
        _refuse_strangers(destination, pictures)
    rows, faults = _transfer(pictures, destination, in_place)
    _raise(source, faults + _resolution_faults(rows))
    _write_manifest(destination, rows)
    return _report(destination, rows, rule, copy.notes)


def _raise(source: Path, faults: list[str]):
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults):,} faults"
        raise UserError(f"{source} cannot be used as it is, {count}:\n  " + "\n  ".join(faults))


# ------------------------------------------------------------------------------------------------------------ checks


def _name_faults(pictures: list[Picture]) -> list[str]:
    """Classes of mini-ImageNet, names that belong to their class, all of one style, each once."""
    faults = []
    foreign = sorted({picture.wnid for picture in pictures} - set(WNIDS))
    if foreign:
        faults.append(f"not among the 100 classes of mini-ImageNet: {', '.join(foreign)}")
    for picture in pictures:
        match = re.match(r"(n\d{8})(_|\d{8}\.)", picture.name)
        if match and match[1] != picture.wnid:
            faults.append(f"{picture}: an image of {match[1]} by its name, in class {picture.wnid}")
    kinds = styles(pictures)
    if len(kinds) > 1:
        faults.append(mixed(kinds))
    same = collections.defaultdict(list)
    for picture in pictures:
        same[picture.wnid, Path(picture.name).stem.lower()].append(picture)
    faults += [
        f"the same name twice: {', '.join(map(str, twins))}. Keep one." for twins in same.values() if len(twins) > 1
    ]
    return faults


def _count_faults(pictures: list[Picture], could_be_imagenet: bool) -> list[str]:
    """500 + 100 images of each of the 100 classes."""
    counts = collections.defaultdict(collections.Counter)
    for picture in pictures:
        counts[picture.wnid][picture.split] += 1
    faults = []
    missing = [wnid for wnid in WNIDS if wnid not in counts]
    if missing:
        faults.append(f"{len(missing)} of {len(WNIDS)} classes are missing: {', '.join(missing)}")
    for wnid, count in sorted(counts.items()):
        for split, number in count.items():
            expected = PER_CLASS[split] if split else sum(PER_CLASS.values())
            if number != expected:
                faults.append(f"{wnid}: {number} images{f' in {split}' if split else ''}, {expected} expected")
    if could_be_imagenet and any(sum(count.values()) >= FEWEST_IN_IMAGENET for count in counts.values()):
        faults.append("This looks like ImageNet itself: say which images are meant with --lists FOLDER.")
    if faults:
        faults.append("(--allow-partial prepares an incomplete copy; accuracies on it are not those of mini-ImageNet.)")
    return faults


def _half_faults(pictures: list[Picture]) -> list[str]:
    """Every class has images in both halves."""
    halves = collections.defaultdict(set)
    for picture in pictures:
        halves[picture.wnid].add(picture.split)
    return [
        f"{wnid}: images only in {half}; a class needs some in train and some in test"
        for wnid, (half, *more) in sorted(halves.items())
        if not more
    ]


def _resolution_faults(rows: list[dict]) -> list[str]:
    """84x84 images among larger ones come from another copy."""
    small = [row["path"] for row in rows if (row["width"], row["height"]) == (84, 84)]
    if not 0.01 * len(rows) < len(small) < 0.99 * len(rows):
        return []
    return [f"two copies mixed: {len(small):,} images of 84x84 (such as {small[0]}) among {len(rows):,}. Keep one."]


def _is_in_place(source: Path, destination: Path, pictures: list[Picture]) -> bool:
    here, there = source.resolve(), destination.resolve()
    if here != there and (there in here.parents or here in there.parents):
        raise UserError(f"{destination} and {source} lie inside each other. Give a destination beside the source.")
    moved = [picture for picture in pictures if source / picture.path != picture.source]
    if here == there and moved:
        raise UserError(
            f"{source}: preparing it where it lies would move {len(moved):,} images (such as {moved[0]} to {moved[0].path}). Give "
            "another folder as destination."
        )
    return here == there


def _refuse_strangers(destination: Path, pictures: list[Picture]):
    """A destination that holds images of another preparation is not mixed with this one."""
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination} is a file. Give a folder for the prepared set.")
    planned = {picture.path for picture in pictures}
    present = (path for split in PER_CLASS for path in (destination / split).rglob("*") if not path.is_dir())
    names = (path.relative_to(destination).as_posix() for path in present if not path.name.startswith("."))
    strangers = sorted(name for name in names if name not in planned)
    if strangers:
        raise UserError(
            f"{destination} holds {len(strangers):,} files that do not belong to this set: {some(strangers)}. Give an empty "
            "folder, or remove them."
        )


# ------------------------------------------------------------------------------------------------ splitting and copying


def _split(pictures: list[Picture], seed) -> list[Picture]:
    """Each class split, 500 of 600 for training: the first ones, or those that the seed draws.

    "First" goes by the numbers in the names, so that a class under ImageNet's names (n01532829_5.JPEG before n01532829_10.JPEG)
    is split as under the lists' names. The draw sorts names by the SHA-256 of "seed/class/name": it depends on no library.
    """

    def by_number(picture):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", picture.name)]

    def by_draw(picture):
        return hashlib.sha256(f"{seed}/{picture.wnid}/{picture.name}".encode()).digest()

    classes = collections.defaultdict(list)
    for picture in pictures:
        classes[picture.wnid].append(picture)
    result = []
    for members in classes.values():
        members.sort(key=by_number if seed is None else by_draw)
        train = len(members) * PER_CLASS["train"] // sum(PER_CLASS.values())
        result += [dataclasses.replace(p, split="train" if i < train else "test") for i, p in enumerate(members)]
    return result


def _transfer(pictures: list[Picture], destination: Path, in_place: bool) -> tuple[list[dict], list[str]]:
    """Decode every image to check it, and copy it: (the manifest's rows, what is wrong).

    Rows are written down as they come, in manifest.partial.csv: what an earlier call did is not decoded again, if its bytes are
    still the same.
    """
    known = _known_rows(destination)
    rows, faults = [], []
    try:
        destination.mkdir(parents=True, exist_ok=True)
        if not in_place:
            _demand_space(pictures, destination)
            for folder in {(destination / picture.path).parent for picture in pictures}:
                folder.mkdir(parents=True, exist_ok=True)
        with open(destination / "manifest.partial.csv", "a", newline="", encoding="utf-8") as partial, _crew() as crew:
            writer = csv.DictWriter(partial, FIELDS, lineterminator="\n")
            taken = crew.map(
                lambda p: _take(p, None if in_place else destination / p.path, known.get(p.path)), pictures
            )
            for result in tqdm(taken, total=len(pictures), desc="images", unit="image", disable=None):
                if isinstance(result, str):
                    faults.append(result)
                    continue
                rows.append(result)
                if result != known.get(result["path"]):
                    writer.writerow(result)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space for {destination} ({error.strerror}). Make room and run the same command again: it goes on from here."
            ) from error
        raise UserError(f"{destination} cannot be written: {error}. Give another destination.") from error
    if faults:
        faults.append(
            f"The other {len(rows):,} images are in order. Replace these, or remove them and add --allow-partial."
        )
    return rows, faults


def _take(picture: Picture, target: Path | None, known: dict | None):
    """Read, decode and copy one image: its row of the manifest, or a line that says what is wrong with it."""
    try:
        with open(picture.source, "rb") as file:
            file.seek(picture.offset)
            data = file.read(picture.size)
    except OSError as error:
        return f"{picture}: cannot be read: {error.strerror}"
    row = {"path": picture.path, "class": picture.wnid, "split": picture.split}
    row |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if known and known["sha256"] == row["sha256"]:
        row = known
    else:
        try:
            row |= _decoded(data)
        except Exception as error:  # Pillow raises many kinds
            return f"{picture}: {error or type(error).__name__}"
    if target and not (known and target.is_file() and target.read_bytes() == data):
        draft = target.with_name(f".{target.name}.draft")
        draft.write_bytes(data)
        os.replace(draft, target)
    return row


def _decoded(data: bytes) -> dict:
    """Width, height and mode of an image that can be decoded to its end; raises otherwise."""
    if not data:
        raise ValueError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError:
        raise ValueError("no image: no kind of image file begins like this") from None
    if image.mode not in MODES:
        raise ValueError(f"pixels of mode {image.mode}, which are not 8-bit: convert it")
    return {"width": image.width, "height": image.height, "mode": image.mode}


def _known_rows(destination: Path) -> dict[str, dict]:
    """{path: row} of the manifest and of what an earlier call wrote down; a line that was cut off by a kill is left out."""
    known = {}
    for file in ("manifest.csv", "manifest.partial.csv"):
        with (
            contextlib.suppress(OSError),
            open(destination / file, newline="", encoding="utf-8", errors="replace") as lines,
        ):
            for values in csv.reader(lines):
                row = dict(zip(FIELDS, values, strict=False))
                if len(values) == len(FIELDS) and re.fullmatch("[0-9a-f]{64}", row["sha256"]):
                    known[row["path"]] = row | {key: int(row[key]) for key in ("width", "height", "size")}
    return known


def _demand_space(pictures: list[Picture], destination: Path):
    def present(target):
        return target.stat().st_size if target.is_file() else -1

    needed = sum(picture.size for picture in pictures if present(destination / picture.path) != picture.size)
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


@contextlib.contextmanager
def _crew():
    """As many threads as there are processors: reading, hashing and decoding leave Python's lock alone while they work."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    crew = concurrent.futures.ThreadPoolExecutor(processors)
    try:
        yield crew
    finally:
        crew.shutdown(cancel_futures=True)


# ------------------------------------------------------------------------------------------------- manifest and report


def _write_manifest(destination: Path, rows: list[dict]):
    draft = destination / "manifest.csv.draft"
    with open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["path"]))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, destination / "manifest.csv")
    (destination / "manifest.partial.csv").unlink(missing_ok=True)


def _report(destination: Path, rows: list[dict], rule: str, notes: list[str]) -> str:
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
    lines += [*_duplicates(rows), *notes]
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
