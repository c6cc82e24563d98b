"""A network's predictions: accuracy by class, and the confusion matrix as a table and a picture."""

import textwrap

import numpy as np
from matplotlib.figure import Figure


def confusion_matrix(labels, predicted, classes):
    """Images of class i that are taken for class j, int (classes, classes)."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def by_class(matrix, classes):
    """A line for each class: its images, how many are right, in percent, its commonest mistake."""
    width = max(map(len, ["class", *classes]))
    lines = [f"{'class':{width}}  images  right      %  most often taken for"]
    for i, name in enumerate(classes):
        images, right = matrix[i].sum(), matrix[i, i]
        wrong = np.where(np.arange(len(classes)) == i, 0, matrix[i])
        share = f"{100 * right / images:6.2f}" if images else f"{'-':>6}"
        mistake = f"  {classes[wrong.argmax()]} ({wrong.max()})" if wrong.any() else ""
        lines.append(f"{name:{width}}  {images:6}  {right:5} {share}{mistake}")
    return "\n".join(lines)


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
