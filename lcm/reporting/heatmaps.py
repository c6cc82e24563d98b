"""Figure 4: the heatmaps of several networks on the same images."""

import io
import json

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lcm.errors import UserError
from lcm.files import write_atomically
from lcm.reporting.protocol import NETWORK_TITLE

ATTENTION_TITLE = {
    "se": "SE",
    "cbam": "CBAM",
    "nonlocal": "Non-local",
    "gc": "GC",
    "lcm1": "LCM1",
    "lcm2": "LCM2",
}


def titles(states):
    """A title for each run.json, such as "ResNet-20 + SE"; with the seed where titles would be the same."""
    found = []
    for state in states:
        network = NETWORK_TITLE.get(state["model"], state["model"]).split(" ")[0]
        attention = ATTENTION_TITLE.get(state["attention"], state["attention"])
        found.append(network if state["attention"] == "none" else f"{network} + {attention}")
    if len(set(found)) < len(found):
        found = [
            f"{title}, seed {state['seed']}" for title, state in zip(found, states, strict=True)
        ]
    return found


def draw(titles, classes, normalisation, images, labels, cams):
    """The figure: a block an image, two rows of panels in it; sizes in inches.

    titles: of the networks. classes: names. normalisation: (mean, std), a value for each colour. images: (N, 3, H, W), normalised.
    labels: (N,). cams: a `lcm.score_cam.ScoreCAM` for each network.
    """
    panel, gap, text, head = 1.0, 0.06, 0.17, 0.38
    columns = 2 if len(images) > 3 else 1
    rows = -(-len(images) // columns)
    block_width, block_height = (panel + gap) * (1 + len(titles)) + 0.1, 2 * panel + gap + 2 * text
    width = 0.1 + columns * (block_width + 0.2) + 0.55
    height = head + rows * block_height + (rows - 1) * 0.15
    figure = Figure((width, height), facecolor="white")
    colours = matplotlib.colormaps["inferno"]

    def place(left, top, wide=panel, high=panel):
        return figure.add_axes(
            (left / width, 1 - (top + high) / height, wide / width, high / height)
        )

    def write(left, top, words, **style):
        figure.text(
            left / width,
            1 - top / height,
            words,
            **{"fontsize": 7.5, "ha": "center", "va": "top"} | style,
        )

    def show(left, top, pixels, **how):
        axes = place(left, top)
        axes.imshow(pixels, interpolation="nearest", **how)
        axes.set_axis_off()
        return axes

    mean, std = (np.array(values).reshape(1, 1, 3) for values in normalisation)
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        row, column = divmod(i, columns)
        left, top = 0.1 + column * (block_width + 0.2), head + row * (block_height + 0.15)
        picture = (image.permute(1, 2, 0).numpy() * std + mean).clip(0, 1)
        middle = top + (panel + gap) / 2
        show(left, middle, picture)
        write(left + panel / 2, middle - 0.17, classes[label])
        if row == 0:
            write(left + panel / 2, head - 0.06, "Input", weight="bold", va="bottom")
        for k, (title, cam) in enumerate(zip(titles, cams, strict=True)):
            x = left + (panel + gap) * (k + 1) + 0.1
            heat = cam.heatmap[i].numpy()
            show(x, top, heat, cmap=colours, vmin=0, vmax=1)
            opacity = 0.7 * heat[..., None]  # the picture stays visible where the heatmap is low
            show(x, top + panel + gap, (1 - opacity) * picture + opacity * colours(heat)[..., :3])
            write(x + panel / 2, top + 2 * panel + gap + 0.05, f"P = {cam.probability[i]:.4f}")
            if cam.predicted[i] != label:
                says = f"predicts {classes[int(cam.predicted[i])]}"
                write(x + panel / 2, top + 2 * panel + gap + 0.19, says, fontsize=6, color="0.35")
            if not heat.any():
                write(x + panel / 2, top + 0.42, "no evidence", color="white")
            if row == 0:
                write(
                    x + panel / 2,
                    head - 0.06,
                    title.replace(" + ", "\n+ "),
                    weight="bold",
                    va="bottom",
                )
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours),
        cax=place(width - 0.6, head, 0.1, 2 * panel + gap),
        ticks=[0, 1],
    )
    bar.ax.set_yticklabels(["low", "high"], fontsize=7)
    bar.ax.tick_params(length=2)
    bar.outline.set_linewidth(0.5)
    return figure


def facts(states, data, layer, sources, labels, cams):
    """What the figure shows, as plain values."""
    return {
        "variant": "official",  # the authors' method; recorded since there were others
        "layer": layer,
        "data": data.name,
        "networks": [
            {"title": title, "run": state["run"], "config_hash": state["config_hash"]}
            for title, state in zip(titles(states), states, strict=True)
        ],
        "images": [
            {
                "image": source,
                "class": data.classes[label],
                "P": [round(float(cam.probability[i]), 6) for cam in cams],
                "predicted": [data.classes[int(cam.predicted[i])] for cam in cams],
            }
            for i, (source, label) in enumerate(zip(sources, labels.tolist(), strict=True))
        ],
    }


def save(stem, figure, facts):
    """Write the figure and its facts; the same figure gives the same bytes."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {stem}: cannot make the folder {stem.parent} ({error.strerror})"
        ) from error
    with matplotlib.rc_context({"svg.hashsalt": "score_cam"}):
        for kind, metadata in (
            ("png", {"Software": None}),
            ("svg", {"Date": None, "Creator": None}),
        ):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
            write_atomically(f"{stem}.{kind}", buffer.getvalue())
    write_atomically(f"{stem}.json", (json.dumps(facts, indent=1) + "\n").encode())
