"""The figures: learning curves, and differences with their intervals; and the files of any figure.

Figures are narrow enough to be read on a phone. The bytes of a file are the same each time for one
version of matplotlib.
"""

import io
import itertools
import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lcm.config import compose
from lcm.files import write
from lcm.reporting.protocol import in_order
from lcm.reporting.statistics import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, SUPPORTED

# Okabe and Ito's colours, which colour-blind readers can tell apart, for the paper's modules; then
# others for further modules.
COLOURS = (
    *("#555555", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
    *("#6a3d9a", "#8c564b", "#bcbd22", "#17becf", "#7b1f3a", "#1b5e20", "#3f51b5", "#a1887f"),
)
INK = "#555555"
VERDICT_COLOURS = {
    SUPPORTED: "#1a7f37",
    CONTRADICTED: "#cf222e",
    INCONCLUSIVE: "#0550ae",
    NOT_TESTED: "#767676",
}
PAPERS = "the paper (its own schedule)"
# In force while a figure is made, and again while its file is written: only then matplotlib
# looks up the fonts and reads `svg.*`.
STYLE = {
    "font.family": "sans-serif",  # where DejaVu Sans is not installed
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "figure.constrained_layout.w_pad": 0.2,  # letters of another font may be wider
    "font.size": 9,
    "text.parse_math": False,  # names with dollars are no formulas
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    # Without a salt the ids of clip paths and markers are random.
    "svg.hashsalt": "lcm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH = 4.6  # inches
METADATA = {  # the formats, with nothing that changes with the day
    ".png": {"Software": None},
    ".svg": {"Date": None, "Description": "drawn by lcm"},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def as_bytes(figure, ending):
    """The bytes of a figure's file: `ending` is a key of METADATA."""
    with matplotlib.rc_context(STYLE):
        # savefig would lay out anew, at 200 dots per inch for PNG and at 72 for SVG and PDF:
        # the pictures of one figure would differ.
        figure.get_layout_engine().execute(figure)  # at the dots per inch of the figure, not of SVG
        figure.set_layout_engine("none")
        out = io.BytesIO()
        figure.savefig(out, format=ending[1:], dpi=200, metadata=METADATA[ending])
        return out.getvalue()


def save(figure, file):
    """Write a figure in the format of its name's ending."""
    write(file, as_bytes(figure, file.suffix.lower()))


def colours(attentions):
    """{attention: colour}: the same in every figure for all that configs/ knows."""
    known = in_order(compose.choices("attention"))
    palette = dict(zip(dict.fromkeys([*known, *attentions]), itertools.cycle(COLOURS)))
    return {attention: palette[attention] for attention in attentions}


def panels(arms):
    """The arms of each panel: `none` in all of them, and at most four others."""
    none = [arm for arm in arms if arm == "none"]
    others = [arm for arm in arms if arm != "none"]
    count = max(1, math.ceil(len(others) / 4))
    # Parts of nearly equal size: five others become three and two, not four and one.
    return [[*none, *part.tolist()] for part in np.array_split(others, count)]


@matplotlib.rc_context(STYLE)
def learning_curves(arms, title):
    """Test accuracy over the epochs, the mean over the seeds; below, the last quarter, each run.

    arms: {attention: [test accuracy of each epoch, for each run]}, all of one length.
    """
    groups, palette = panels(arms), colours(arms)
    figure = Figure(figsize=(WIDTH, 0.6 + 3.8 * len(groups)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(2 * len(groups), 1)
    for group, whole, end in zip(groups, axes[::2], axes[1::2], strict=True):
        for index, attention in enumerate(group):
            curves = np.array(arms[attention])  # (seeds, epochs)
            epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
            # Two epochs at least: one point draws no line.
            last = slice(-max(2, len(epochs) // 4), None)
            style = {"color": palette[attention], "linewidth": 1.3}
            whole.plot(epochs, mean, label=f"{attention} ({len(curves)})", **style)
            end.plot(epochs[last], mean[last], **style)
            # dots of the arms beside each other, near their epoch however few there are
            apart = min(0.05, len(epochs[last]) / 150)
            beside = epochs[last] + apart * (index - (len(group) - 1) / 2)
            for curve in curves if len(curves) > 1 else ():
                end.plot(beside, curve[last], ".", color=palette[attention], markersize=3)
        end.set_title(f"epochs {epochs[last][0]} to {epochs[-1]}")
        whole.legend(loc="lower right", ncols=2, title="mean (of seeds)", title_fontsize=8)
        for axis in (whole, end):
            axis.set_ylabel("test top-1 (%)")
            axis.grid(alpha=0.25, linewidth=0.5)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[-1].set_xlabel("epoch")
    return figure


@matplotlib.rc_context(STYLE)
def forest(rows, title):
    """Mean differences with their 95 % intervals, one per line; below each its pairs, as circles.

    rows: {label: (`paired.Row` with pairs, the paper's difference or None)}.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.34 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axis = figure.subplots()
    axis.axvline(0, color=INK, linewidth=0.8)
    # A circle takes about a sixtieth of the axis: nearer ones would hide each other.
    near = np.ptp([d for row, _ in rows.values() for d in row.comparison.differences] or [0]) / 60
    for i, (row, paper) in enumerate(rows.values()):
        ours, word = row.comparison, row.verdict or "no verdict"
        colour, found = VERDICT_COLOURS.get(word, INK), ours.differences
        if i % 2:
            axis.axhspan(i - 0.5, i + 0.5, color="#f3f4f6", zorder=0)
        # One pair or two have a mean and no interval.
        if ours.low is not None:
            axis.hlines(i - 0.2, ours.low, ours.high, colors=colour, linewidth=1.4)
        # circles in one place stand above each other: 0, -1, 1, -2, 2 steps from the line
        before = [sum(abs(d - e) <= near for e in found[:k]) for k, d in enumerate(found)]
        heights = [i + 0.15 + 0.12 * ((k + 1) // 2) * (-1) ** k for k in before]
        hollow = {"facecolors": "none", "linewidths": 0.7, "edgecolors": colour}
        axis.scatter(found, heights, s=9, zorder=2, label="a pair of runs", **hollow)
        # The label names the verdict: the legend explains each colour that occurs.
        axis.scatter(
            ours.mean,
            i - 0.2,
            s=18,
            zorder=3,
            color=colour,
            label=f"mean, 95 % interval: {word}",
            linewidths=0,
        )
        if paper is not None:
            hollow |= {"linewidths": 0.8, "edgecolors": "#000000", "label": PAPERS}
            axis.scatter(paper, i - 0.2, s=24, zorder=3, marker="D", **hollow)
    # Row i is at y = i; the axis points downwards, so that the first row stands on top.
    axis.set_yticks(range(len(rows)), list(rows), fontsize=7.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("difference in test top-1 (points)")
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    handles, labels = axis.get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))  # each label once
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2)
    return figure
