"""The figures: learning curves, accuracy against cost, differences with their intervals.

Every function returns a matplotlib Figure, narrow enough to be read on a phone; `svg` and `png` turn it into bytes that are
the same each time for one version of matplotlib.
"""

import functools
import io
import itertools

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from lcm.reporting.statistics import CONTRADICTED, SUPPORTED, UNTESTABLE

COLOURS = {  # Okabe and Ito: told apart by colour-blind readers too
    "none": "#555555",
    "se": "#0072b2",
    "cbam": "#e69f00",
    "nonlocal": "#009e73",
    "gc": "#cc79a7",
    "lcm1": "#56b4e9",
    "lcm2": "#d55e00",
}
VERDICT_COLOURS = {SUPPORTED: "#1a7f37", CONTRADICTED: "#cf222e", UNTESTABLE: "#9a9a9a"}
MARKERS = "osD^vP*Xh"
STYLE = {
    "font.family": "sans-serif",  # named after DejaVu Sans in the SVG, for a reader who has not got it
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "figure.constrained_layout.w_pad": 0.2,  # another reader's letters may be wider
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: small files, searchable
    "svg.hashsalt": "lcm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH = 4.6  # inches


def _styled(draw):
    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def _settled(figure):
    """The figure with its layout worked out, once for all formats."""
    if figure.get_layout_engine() is not None:
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
    return figure


@_styled
def svg(figure):
    """The figure as SVG bytes, without a date."""
    out = io.BytesIO()
    _settled(figure).savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


@_styled
def png(figure):
    """The figure as PNG bytes at 160 dots an inch."""
    out = io.BytesIO()
    _settled(figure).savefig(out, format="png", dpi=160)
    return out.getvalue()


def _colour(attention):
    return COLOURS.get(attention, "#000000")


@_styled
def learning_curves(arms, title):
    """Test accuracy over the epochs: above all of them, below the last quarter; mean and range over the seeds.

    `arms`: {attention: list of runs, each a list of test accuracies by epoch}, all of one length.
    """
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    whole, end = figure.subplots(2, 1)
    limits = []
    for attention, runs in arms.items():
        curves = np.array(runs)  # (seeds, epochs)
        epochs = np.arange(1, curves.shape[1] + 1)
        mean, low, high = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
        style = {"color": _colour(attention), "linewidth": 1.2, "linestyle": "--" if attention == "lcm1" else "-"}
        last = max(0, curves.shape[1] * 3 // 4 - 1)
        for axis, part in ((whole, slice(None)), (end, slice(last, None))):
            step = max(1, len(epochs[part]) // 50)  # some fifty points are all that a curve of this width can show
            shown = np.unique(np.append(np.arange(len(epochs))[part][::step], len(epochs) - 1))
            axis.plot(epochs[shown], mean[shown], label=f"{attention} ({len(runs)})", **style)
            if len(runs) > 1:
                axis.fill_between(
                    epochs[shown], low[shown], high[shown], color=_colour(attention), alpha=0.1, linewidth=0
                )
        limits += [low[last:].min(), high[last:].max()]
    if len(arms) and min(limits) < max(limits):
        margin = 0.05 * (max(limits) - min(limits))
        end.set_ylim(min(limits) - margin, max(limits) + margin)
    figure.suptitle(title, fontsize=10)
    end.set_title("the last quarter")
    end.set_xlabel("epoch")
    for axis in (whole, end):
        axis.set_ylabel("test top-1 (%)")
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@_styled
def accuracy_against(costs, title):
    """Accuracy against costs, one below the other.

    `costs`: {its name: list of (network, attention, cost, mean, deviation or None, the paper's accuracy or None)}. Filled:
    ours, with the deviation over seeds; hollow: the paper.
    """
    every = [point for points in costs.values() for point in points]
    networks = list(dict.fromkeys(point[0] for point in every))
    figure = Figure(figsize=(WIDTH, 0.6 + 2.7 * len(costs)), layout="constrained")
    axes = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=10)
    for axis, (what, points) in zip(axes, costs.items(), strict=True):
        for network, marker in zip(networks, itertools.cycle(MARKERS), strict=False):
            own = [point for point in points if point[0] == network]
            _, attentions, x, y, deviations, papers = zip(*own, strict=True)
            colours = [_colour(attention) for attention in attentions]
            axis.scatter(x, y, s=24, c=colours, marker=marker, linewidths=0)
            axis.errorbar(x, y, [d or 0 for d in deviations], fmt="none", ecolor=colours, elinewidth=0.8)
            printed = [i for i, paper in enumerate(papers) if paper is not None]
            axis.scatter(
                [x[i] for i in printed], [papers[i] for i in printed], s=28, marker=marker, linewidths=0.9,
                facecolors="none", edgecolors=[colours[i] for i in printed],
            )  # fmt: skip
        low, high = min(point[2] for point in points), max(point[2] for point in points)
        if high > 3 * low:
            axis.set_xscale("log")
            ticks = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
            axis.set_xticks([tick for tick in ticks if low / 1.3 < tick < high * 1.3])
            axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axis.set_xlabel(what)
        axis.set_ylabel("test top-1 (%)")
        axis.grid(alpha=0.25, linewidth=0.5)
    attentions = [attention for attention in COLOURS if attention in {point[1] for point in every}]
    handles = [Line2D([], [], color=_colour(a), marker="s", linestyle="", label=a) for a in attentions]
    handles += [
        Line2D([], [], color="#555555", marker=MARKERS[i % len(MARKERS)], linestyle="", label=network)
        for i, network in enumerate(networks)
    ]
    if any(point[5] is not None for point in every):
        handles.append(
            Line2D([], [], color="#555555", marker="o", fillstyle="none", linestyle="", label="hollow: paper")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1)
    return figure


@_styled
def forest(rows, title):
    """Mean differences with their 95 % intervals, one a line, behind them each pair's own as a hollow circle.

    `rows`: (label, mean, low, high, differences, the paper's or None, verdict).
    """
    figure = Figure(figsize=(WIDTH, 1.3 + 0.2 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#555555", linewidth=0.8)
    _, means, lows, highs, pairs, papers, verdicts = zip(*rows, strict=True)
    colours = [VERDICT_COLOURS.get(word, "#0550ae") for word in verdicts]
    ranged = [place for place, low in enumerate(lows) if low is not None]
    axis.hlines(
        ranged,
        [lows[i] for i in ranged],
        [highs[i] for i in ranged],
        colors=[colours[i] for i in ranged],
        linewidth=1.4,
    )
    single = [(difference, i) for i, differences in enumerate(pairs) for difference in differences]
    if single:
        axis.scatter(
            *zip(*single, strict=True), s=11, facecolors="none", edgecolors=[colours[i] for _, i in single],
            linewidths=0.6, zorder=2,
        )  # fmt: skip
    ours = [place for place, mean in enumerate(means) if mean is not None]
    axis.scatter([means[i] for i in ours], ours, s=16, c=[colours[i] for i in ours], zorder=3, linewidths=0)
    printed = [place for place, paper in enumerate(papers) if paper is not None]
    axis.scatter(
        [papers[i] for i in printed], printed, s=20, marker="D", facecolors="none", edgecolors="#000000", linewidths=0.8,
        zorder=3,
    )  # fmt: skip
    axis.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=7.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("difference in test top-1 (points)")
    figure.suptitle(title, fontsize=10)
    axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    words = [word for word in (SUPPORTED, CONTRADICTED, "inconclusive", UNTESTABLE) if word in verdicts]
    handles = [
        Line2D([], [], color=VERDICT_COLOURS.get(word, "#0550ae"), marker="o", markersize=4, label=word)
        for word in words
    ]
    hollow = {"fillstyle": "none", "linestyle": ""}
    if single:
        handles.append(Line2D([], [], color="#555555", marker="o", markersize=3.5, label="a pair of runs", **hollow))
    if printed:
        handles.append(Line2D([], [], color="#000000", marker="D", markersize=4.5, label="the paper", **hollow))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
