"""The user's own image files, as the networks of a data set expect them."""

import numpy as np
import torch
from PIL import Image, ImageOps

from lcm.errors import UserError, nearest


def from_files(data, files, classes):
    """(files, normalised images (N, 3, size, size), labels (N,)); `central_square` of each file.

    classes: the true class of each file, by name or number, or one for all. Raises `UserError`.
    """
    classes = classes * len(files) if len(classes) == 1 else classes
    if len(classes) != len(files):
        raise UserError(f"--images: {len(files)} files, --classes: {len(classes)} classes; one each, or one for all")
    labels = torch.tensor([class_index(data, name) for name in classes])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    pixels = [torch.from_numpy(central_square(file, data.image_size)).permute(2, 0, 1) for file in files]
    return [str(file) for file in files], torch.stack([(image / 255 - mean) / std for image in pixels]), labels


def class_index(data, name):
    """A class's index from its name, or from its number."""
    if name in data.classes:
        return data.classes.index(name)
    if name.isdecimal() and int(name) < len(data.classes):
        return int(name)
    raise UserError(
        f"--classes {name}: {data.name} has {len(data.classes)} classes, and none of that name{nearest(name, data.classes)}"
    )


def central_square(file, size):
    """The central square of an image file, uint8 (size, size, 3), its short side resized to 8/7 size (below 64: to size)."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"--images {file}: no such file") from error
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"--images {file}: not readable as an image ({type(error).__name__}: {error})") from error
    short = size if size < 64 else round(size / 0.875)
    scale = short / min(image.size)
    image = image.resize([max(short, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    return np.array(image.crop((left, top, left + size, top + size)))
