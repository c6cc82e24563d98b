"""A network's predictions: accuracy by class, and the confusion matrix as a table and a picture."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def by_class(matrix, classes):
    """A line for each class: its images, how many are right, in percent, its commonest mistake."""
    images, right = matrix.sum(1), matrix.diagonal()
    wrong = matrix - np.diag(right)
    mistakes = [f"{classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    columns = {
        "class": classes,
        "images": images,
        "right": right,
        "%": pd.Series(100 * right).div(images).where(images > 0),
        "most often taken for": mistakes,
    }
    return pd.DataFrame(columns).to_string(index=False, na_rep="-", float_format="%.2f")


def draw(matrix, classes, heading):
    """The confusion matrix: rows are the true classes, shaded by the share of their images."""
    count, few = len(classes), len(classes) <= 20
    side = 1.6 + max(3.0, (0.34 if few else 0.13) * count)
    figure = Figure((side, side + 0.3), layout="constrained", facecolor="white")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(share, display_labels=classes).plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=few,
        xticks_rotation=90,
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 6.5},
    )
    axes.tick_params(labelsize=8 if few else 5)
    axes.set(xlabel="predicted", ylabel="true class")
    if few:  # with more, the numbers would be too small to read
        for text, images in zip(display.text_.flat, matrix.flat, strict=True):
            text.set_text(images or "")
    figure.suptitle("\n".join(textwrap.wrap(heading, int(side / 0.085))), fontsize=9)
    return figure
