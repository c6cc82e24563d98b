"""The default data set: the digits of scikit-learn, so that a first run downloads nothing."""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from lcm.data.in_memory import ResidentSet
from lcm.errors import UserError, one_line


class Digits(ResidentSet):
    """1,797 handwritten digits of 8x8 pixels in 17 grey levels, enlarged to 32x32x3 bytes.

    A pixel becomes a 4x4 square. E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten
    Digits" (UCI repository, 1998), the test part, which comes with scikit-learn. Every fifth image
    of a class is a test image, for every seed: 1,442 for training, 355 for the test.

    `root`: None for scikit-learn's own digits.csv.gz (scikit-learn itself is not imported), or a
    folder with that file. Raises `UserError`.
    """

    def __init__(
        self,
        name="digits",
        num_classes=10,
        image_size=32,
        root=None,
        workers=0,
        pad=4,
        mirror=False,
    ):
        super().__init__(name, num_classes, image_size, workers, pad, mirror)
        pixels, labels = _read_digits(root)
        grey = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        images = grey.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
        in_test = np.zeros(len(labels), bool)
        for digit in range(10):
            in_test[np.flatnonzero(labels == digit)[4::5]] = True
        train, test = ((images[part], labels[part]) for part in (~in_test, in_test))
        values = grey[~in_test] / 255
        self.hold(train, test, [str(d) for d in range(10)], [values.mean()] * 3, [values.std()] * 3)


def _read_digits(root) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 (1797, 64) in 0..16, labels int64 (1797,))."""
    if root is None:
        package = importlib.util.find_spec("sklearn")  # found, not imported
        if package is None:
            raise UserError(
                "The digits come with scikit-learn, which is not installed: "
                "pip install scikit-learn"
            )
        path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
        remedy = "Install scikit-learn again: pip install --force-reinstall --no-deps scikit-learn"
    else:
        path = Path(root).expanduser() / "digits.csv.gz"
        remedy = "Set data.root=null for scikit-learn's own copy."
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        table = np.loadtxt(lines or ["nothing"], np.uint8, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is missing or damaged ({one_line(error)}). {remedy}") from error
    if table.shape != (1797, 65) or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise UserError(
            f"{path} does not hold the 1,797 digits with 64 pixels in 0..16 and a label each. "
            f"{remedy}"
        )
    return table[:, :64], table[:, 64].astype(np.int64)
