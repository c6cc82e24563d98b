"""The default data set: the digits of scikit-learn, so that a first run downloads nothing."""

import importlib.util
from pathlib import Path

import numpy as np

from lcm.data.in_memory import ResidentSet


class Digits(ResidentSet):
    """1,797 handwritten digits of 8x8 pixels in 17 grey levels, enlarged to 32x32x3 bytes.

    A pixel becomes a 4x4 square. E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten
    Digits" (UCI repository, 1998), the test part, which comes with scikit-learn. Every fifth image
    of a class is a test image, for every seed: 1,442 for training, 355 for the test.
    """

    def __init__(self, name="digits", num_classes=10, image_size=32, pad=4, mirror=False):
        super().__init__(name, num_classes, image_size, pad, mirror)
        # found, not imported, which takes a second
        package = Path(importlib.util.find_spec("sklearn").origin).parent
        table = np.loadtxt(package / "datasets/data/digits.csv.gz", np.uint8, delimiter=",")
        labels = table[:, 64].astype(np.int64)
        # 0 ... 16 onto 0 ... 255: (N, 8, 8, 1)
        grey = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        images = grey.repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
        in_test = np.zeros(len(labels), bool)
        for digit in range(10):
            in_test[np.flatnonzero(labels == digit)[4::5]] = True
        train, test = ((images[part], labels[part]) for part in (~in_test, in_test))
        # Of the small images: repeating each pixel equally often changes neither statistic.
        values = grey[~in_test] / 255
        self.hold(train, test, [str(d) for d in range(10)], [values.mean()] * 3, [values.std()] * 3)
