"""A network's predictions: accuracy by class, and the confusion matrix as a table and a picture."""

import textwrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def by_class(matrix, classes):
    """A line for each class: its images, how many are right, in percent, its commonest mistake."""
    images, right = matrix.sum(1), matrix.diagonal()
    # Without the diagonal the largest number of a row is its commonest mistake.
    wrong = matrix - np.diag(right)
    mistakes = [f"{classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    columns = {
        "class": classes,
        "images": images,
        "right": right,
        "%": pd.Series(100 * right).div(images),
        "most often taken for": mistakes,
    }
    return pd.DataFrame(columns).to_string(index=False, na_rep="-", float_format="%.2f")


@matplotlib.rc_context({"text.parse_math": False})  # names with dollars are no formulas
def draw(matrix, classes, heading):
    """The confusion matrix: rows are the true classes, shaded by the share of their images."""
    count, few = len(classes), len(classes) <= 20
    # Inches: 1.6 for the labels; for each class 0.34, which holds a count of four digits, or,
    # without counts, 0.13, which holds the line of a label.
    side = 1.6 + max(3.0, (0.34 if few else 0.13) * count)
    figure = Figure((side, side + 0.3), layout="constrained", facecolor="white")
    axes = figure.subplots()
    # A class without images has a row of zeros: divided by 1, not by 0.
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(share, display_labels=classes).plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=few,
        xticks_rotation=90,
        # Fixed ends: the same shade is the same share in every picture.
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 6.5},
    )
    axes.tick_params(labelsize=8 if few else 5)
    axes.set(xlabel="predicted", ylabel="true class")
    if few:  # with more, the numbers would be too small to read
        for text, images in zip(display.text_.flat, matrix.flat, strict=True):
            text.set_text(images or "")
    # 0.085 inches: a little more than a letter of 9 points is wide on average.
    figure.suptitle("\n".join(textwrap.wrap(heading, int(side / 0.085))), fontsize=9)
    return figure
