"""The figure of Score-CAM: the heatmaps of several networks on the same images, and its facts."""

import textwrap

import matplotlib
from matplotlib.figure import Figure

PANEL, GAP, TEXT, LINE = 1.0, 0.06, 0.17, 0.15  # inches: a picture, between two, below them, a line
BETWEEN = 0.2  # inches between two columns of blocks


def draw(heading, titles, names, classes, pictures, cams):
    """The figure: a block an image, two rows of panels in it, heatmap and overlay.

    heading: what the networks were trained on. titles: of the networks. names: of the images, the
    true class where it is known. classes: names of the classes. pictures: (N, H, W, 3) in [0, 1].
    cams: a `ScoreCAM` on the CPU for each network.
    """
    columns = 2 if len(pictures) > 3 else 1
    rows = -(-len(pictures) // columns)
    block_width = (PANEL + GAP) * (1 + len(titles)) + 0.1
    block_height = 2 * PANEL + GAP + 2 * TEXT
    width = 0.1 + columns * (block_width + BETWEEN) + 0.55
    heading = textwrap.wrap(heading, int(width / 0.075))
    head = 0.5 + LINE * len(heading)
    height = head + rows * (block_height + LINE) - LINE
    figure = Figure((width, height), facecolor="white")
    colours = matplotlib.colormaps["inferno"]

    def place(left, top, wide=PANEL, high=PANEL):
        return figure.add_axes(
            (left / width, 1 - (top + high) / height, wide / width, high / height)
        )

    def write(left, top, words, **style):
        style = {"fontsize": 7.5, "ha": "center", "va": "top"} | style
        figure.text(left / width, 1 - top / height, words, **style)

    def show(left, top, pixels, **how):
        axes = place(left, top)
        axes.imshow(pixels, interpolation="nearest", **how)
        axes.set_axis_off()

    write(0.1, 0.06, "\n".join(heading), fontsize=8.5, ha="left")
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        row, column = divmod(i, columns)
        left = 0.1 + column * (block_width + BETWEEN)
        top = head + row * (block_height + LINE)
        middle = top + (PANEL + GAP) / 2
        show(left, middle, picture)
        write(left + PANEL / 2, middle - 0.17, textwrap.shorten(name, 20, placeholder="..."))
        if row == 0:
            write(left + PANEL / 2, head - 0.06, "Input", weight="bold", va="bottom")
        for k, (title, cam) in enumerate(zip(titles, cams, strict=True)):
            x = left + (PANEL + GAP) * (k + 1) + 0.1
            centre = x + PANEL / 2
            heat = cam.heatmap[i].numpy()
            show(x, top, heat, cmap=colours, vmin=0, vmax=1)
            opacity = 0.7 * heat[..., None]  # the picture stays visible where the heatmap is low
            show(x, top + PANEL + GAP, (1 - opacity) * picture + opacity * colours(heat)[..., :3])
            for line, (words, style) in enumerate(_below(cam, i, name, classes)):
                write(centre, top + 2 * PANEL + GAP + 0.05 + 0.14 * line, words, **style)
            if not heat.any():
                write(centre, top + 0.42, "no evidence", color="white")
            if row == 0:
                stacked = title.replace(" + ", "\n+ ")
                write(centre, head - 0.06, stacked, weight="bold", va="bottom")
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours),
        cax=place(width - 0.6, head, 0.1, 2 * PANEL + GAP),
        ticks=[0, 1],
    )
    bar.ax.set_yticklabels(["low", "high"], fontsize=7)
    bar.ax.tick_params(length=2)
    bar.outline.set_linewidth(0.5)
    return figure


def _below(cam, i, name, classes):
    """The lines below the panels of image `i`, (words, style) each: P, and what is predicted."""
    explained, predicted = int(cam.classes[i]), int(cam.predicted[i])
    of = "" if classes[explained] == name else f"{classes[explained]}: "
    lines = [(f"{of}P = {cam.probability[i]:.4f}", {})]
    if predicted != explained:
        lines.append((f"predicts {classes[predicted]}", {"fontsize": 6, "color": "0.35"}))
    return lines


def facts(heading, titles, states, layer, sources, names, classes, cams):
    """What the figure shows, as plain values. states: run.json of each network's run."""
    return {
        "heading": heading,
        "layer": layer,
        "data": states[0]["data"],
        "networks": [
            {"title": title, "run": state["run"], "config_hash": state["config_hash"]}
            for title, state in zip(titles, states, strict=True)
        ],
        "images": [
            {
                "image": source,
                "name": name,
                "explained": [classes[int(cam.classes[i])] for cam in cams],
                "P": [round(float(cam.probability[i]), 6) for cam in cams],
                "predicted": [classes[int(cam.predicted[i])] for cam in cams],
            }
            for i, (source, name) in enumerate(zip(sources, names, strict=True))
        ],
    }
