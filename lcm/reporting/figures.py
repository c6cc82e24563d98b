"""The figures: learning curves, accuracy against cost, differences with their intervals.

Every function returns a matplotlib Figure, narrow enough to be read on a phone; `svg` turns it into bytes, the same each time for
one version of matplotlib.
"""

import io
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lcm.config import compose
from lcm.reporting.protocol import in_order
from lcm.reporting.statistics import CONTRADICTED, INCONCLUSIVE, NOT_TESTED, SUPPORTED, VERDICTS

# Okabe and Ito's colours, which colour-blind readers can tell apart, for the paper's modules; then others for further modules.
COLOURS = ("#555555", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
COLOURS += ("#6a3d9a", "#8c564b", "#bcbd22", "#17becf", "#7b1f3a", "#1b5e20", "#3f51b5", "#a1887f")
INK, BLACK = "#555555", "#000000"
VERDICT_COLOURS = {
    SUPPORTED: "#1a7f37",
    CONTRADICTED: "#cf222e",
    INCONCLUSIVE: "#0550ae",
    NOT_TESTED: "#9a9a9a",
}
MARKERS = "osD^vP*Xh"
STYLE = {
    "font.family": "sans-serif",  # where DejaVu Sans is not installed
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "figure.constrained_layout.w_pad": 0.2,  # letters of another font may be wider
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "lcm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH = 4.6  # inches


def svg(figure):
    """The figure as the bytes of an SVG file, without a date."""
    with matplotlib.rc_context(STYLE):
        figure.get_layout_engine().execute(figure)  # at the dots per inch of the figure, not of SVG
        figure.set_layout_engine(None)
        out = io.BytesIO()
        figure.savefig(
            out,
            format="svg",
            metadata={"Date": None, "Description": "drawn by scripts/report.py of lcm"},
        )
        return out.getvalue()


def colours(attentions):
    """{attention: colour}: the same in every figure for all that configs/ knows."""
    known = in_order([*compose.choices("attention"), *attentions])
    palette = dict(zip(known, itertools.cycle(COLOURS), strict=False))
    return {attention: palette[attention] for attention in attentions}


@matplotlib.rc_context(STYLE)
def learning_curves(arms, title):
    """Test accuracy over the epochs, mean and range over the seeds; below, the last quarter.

    arms: {attention: [test accuracy of each epoch, for each run]}, all of one length.
    """
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    whole, end = figure.subplots(2, 1)
    limits, palette = [], colours(arms)
    for attention, runs in arms.items():
        curves = np.array(runs)  # (seeds, epochs)
        mean, low, high = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
        count = curves.shape[1]
        style = {
            "color": palette[attention],
            "linewidth": 1.2,
            "linestyle": "--" if attention == "lcm1" else "-",
        }
        last = count - max(2, count // 4) if count > 2 else 0
        every = max(1, count // 50)
        for axis, first in ((whole, 0), (end, last)):
            # about fifty points are all that a curve of this width can show
            step = every if axis is whole else 1
            shown = np.unique(np.append(np.arange(first, count, step), count - 1))
            axis.plot(shown + 1, mean[shown], label=f"{attention} ({len(runs)})", **style)
            if len(runs) > 1:
                band = {"color": palette[attention], "alpha": 0.1, "linewidth": 0}
                axis.fill_between(shown + 1, low[shown], high[shown], **band)
        limits += [np.nanmin(low[last:], initial=np.inf), np.nanmax(high[last:], initial=-np.inf)]
    if limits and np.isfinite(limits).all() and min(limits) < max(limits):
        margin = 0.05 * (max(limits) - min(limits))
        end.set_ylim(min(limits) - margin, max(limits) + margin)
    figure.suptitle(title, fontsize=10)
    if limits and every > 1:
        whole.set_title(f"every {every}th epoch, and the last")
    end.set_title(f"epochs {last + 1} to {count}" if limits else "")
    end.set_xlabel("epoch")
    for axis in (whole, end):
        axis.set_ylabel("test top-1 (%)")
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_against(costs, points, title):
    """Accuracy against each cost, axes below each other. Filled: ours, with the deviation over seeds; hollow: the paper's.

    costs: {column of `points`: its label}. points: a DataFrame with columns network, attention, mean, deviation and paper.
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 2.7 * len(costs)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    palette = colours(in_order(points["attention"]))
    markers = dict(zip(dict.fromkeys(points["network"]), itertools.cycle(MARKERS), strict=False))
    for axis, (cost, name) in zip(
        figure.subplots(len(costs), 1, squeeze=False)[:, 0], costs.items(), strict=True
    ):
        for network, own in points.groupby("network", sort=False):
            shades = list(own["attention"].map(palette))
            axis.scatter(
                own[cost], own["mean"], s=24, c=shades, marker=markers[network], linewidths=0
            )
            bars = {"fmt": "none", "ecolor": shades, "elinewidth": 0.8}
            axis.errorbar(own[cost], own["mean"], own["deviation"].fillna(0), **bars)
            own = own[own["paper"].notna()]
            hollow = {
                "facecolors": "none",
                "edgecolors": list(own["attention"].map(palette)),
                "linewidths": 0.9,
            }
            axis.scatter(own[cost], own["paper"], s=28, marker=markers[network], **hollow)
        low, high = points[cost].min(), points[cost].max()
        if high > 3 * low:
            axis.set_xscale("log")
            ticks = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
            axis.set_xticks([tick for tick in ticks if low / 1.3 < tick < high * 1.3])
            axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
            if (
                high < 1.1 * low
            ):  # modules that add 0.02 % stand beside the network without them, not at the other end
                axis.set_xlim(0.95 * low, 1.05 * high)
        axis.set_xlabel(name)
        axis.set_ylabel("test top-1 (%)")
        axis.grid(alpha=0.25, linewidth=0.5)
    handles = [_handle(name, colour, "s") for name, colour in palette.items()]
    handles += [_handle(network, INK, marker) for network, marker in markers.items()]
    handles += (
        [_handle("hollow: paper", INK, "o", fillstyle="none")]
        if points["paper"].notna().any()
        else []
    )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1
    )
    return figure


def _handle(label, colour, marker, **style):
    return Line2D([], [], color=colour, marker=marker, label=label, **{"linestyle": "", **style})


@matplotlib.rc_context(STYLE)
def forest(rows, title):
    """Mean differences with their 95 % intervals, one per line, and the difference of each pair of runs as a hollow circle.

    rows: a list of (label, Comparison, the paper's difference or None, verdict or None).
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.2 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color=INK, linewidth=0.8)
    for i, (_, ours, paper, word) in enumerate(rows):
        colour = VERDICT_COLOURS.get(word, VERDICT_COLOURS[INCONCLUSIVE])
        if ours.low is not None:
            axis.hlines(i, ours.low, ours.high, colors=colour, linewidth=1.4)
        if ours.n:
            pairs = {"facecolors": "none", "edgecolors": colour, "linewidths": 0.6}
            axis.scatter(ours.differences, [i] * ours.n, s=11, zorder=2, **pairs)
            axis.scatter(ours.mean, i, s=16, color=colour, zorder=3, linewidths=0)
        if paper is not None:
            diamond = {"marker": "D", "facecolors": "none", "edgecolors": BLACK, "linewidths": 0.8}
            axis.scatter(paper, i, s=20, zorder=3, **diamond)
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=7.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("difference in test top-1 (points)")
    figure.suptitle(title, fontsize=10)
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    found = {word for _, ours, _, word in rows if ours.n}
    marker = {"markersize": 4, "linestyle": "-"}
    handles = [
        _handle(word, VERDICT_COLOURS[word], "o", **marker) for word in VERDICTS if word in found
    ]
    handles += (
        [_handle("a pair of runs", INK, "o", markersize=3.5, fillstyle="none")] if found else []
    )
    if any(paper is not None for _, _, paper, _ in rows):
        handles.append(_handle("the paper", BLACK, "D", markersize=4.5, fillstyle="none"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
