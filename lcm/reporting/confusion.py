"""A network's predictions: accuracy by class, and the confusion matrix as a table and a picture."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


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
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 8 if few else 5
    axes.set_xticks(range(count), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(count), classes, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    if few:  # with more, the numbers would be too small to read
        for (i, j), images in np.ndenumerate(matrix):
            if images:
                ink = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, images, ha="center", va="center", fontsize=6.5, color=ink)
    figure.suptitle("\n".join(textwrap.wrap(heading, int(side / 0.085))), fontsize=9)
    return figure
