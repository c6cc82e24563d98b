"""The figure of Score-CAM: the heatmaps of several networks on the same images, and its facts."""

import textwrap

import matplotlib
from matplotlib.figure import Figure


@matplotlib.rc_context({"text.parse_math": False})  # names with dollars are no formulas
def draw(heading, titles, names, classes, pictures, cams):
    """The figure: a block an image, with heatmaps above and overlays below.

    heading: what the networks were trained on. titles: of the networks. names: of the images, the
    true class where it is known. classes: names of the classes. pictures: (N, H, W, 3) in [0, 1].
    cams: a `ScoreCAM` on the CPU for each network.
    """
    columns = 2 if len(pictures) > 3 else 1
    rows = -(-len(pictures) // columns)
    width = columns * (1.1 * (1 + len(titles)) + 0.5)  # inches
    figure = Figure((width, 0.5 + 2.65 * rows), layout="constrained", facecolor="white")
    # A letter of this size takes a little less than 0.068 inches.
    figure.suptitle("\n".join(textwrap.wrap(heading, int(width / 0.068))), fontsize=8.5)
    blocks = figure.subfigures(rows, columns, squeeze=False).ravel()
    colours = matplotlib.colormaps["inferno"]
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        axes = blocks[i].subplots(2, 1 + len(titles))
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        short = name if len(name) <= 20 else f"{name[:17]}..."
        axes[0, 0].imshow(picture, interpolation="nearest")
        axes[0, 0].set_title(f"Input:\n{short}", fontsize=7.5)
        for (above, below), title, cam in zip(axes.T[1:], titles, cams, strict=True):
            heat = cam.heatmap[i].numpy()
            scale = above.imshow(heat, colours, vmin=0, vmax=1, interpolation="nearest")
            opacity = 0.7 * heat[..., None]  # the picture stays visible where the heatmap is low
            overlay = (1 - opacity) * picture + opacity * colours(heat)[..., :3]
            below.imshow(overlay, interpolation="nearest")
            above.set_title(title.replace(" + ", "\n+ "), fontsize=7.5, weight="bold")
            below.set_xlabel(_below(cam, i, name, classes), fontsize=7)
            if not heat.any():
                above.text(
                    0.5,
                    0.5,
                    "no evidence",
                    transform=above.transAxes,
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=7.5,
                )
        # One bar for the block: all its heatmaps are scaled from 0 to 1.
        bar = blocks[i].colorbar(scale, ax=axes, ticks=[0, 1], shrink=0.6, aspect=30)
        bar.ax.set_yticklabels(["low", "high"], fontsize=7)
    return figure


def _below(cam, i, name, classes):
    """What stands below the panels of image `i`: P, and the predicted class where it is another."""
    explained, predicted = int(cam.classes[i]), int(cam.predicted[i])
    of = "" if classes[explained] == name else f"{classes[explained]}: "
    other = "" if predicted == explained else f"predicts {classes[predicted]}"
    return f"{of}P = {cam.probability[i]:.4f}\n{other}"


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
