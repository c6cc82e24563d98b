"""Score-CAM: heatmaps of trained networks on the same images.

    python scripts/score_cam.py runs/digits/resnet20/*/seed0-*                     # test images
    python scripts/score_cam.py RUN RUN --index 3 14 159 --out figure.pdf          # these ones
    python scripts/score_cam.py RUN --image a.jpg b.png --class cat --out cam.svg  # your own

For each image the figure has the input and, for each network, the heatmap above, the overlay below,
and P, the softmax probability of the heatmap's class. That is the true class of a test image, the
predicted class of your own picture, or that of --class. Your pictures are cropped to their central
square and resized to the training images' size. A .json beside the first figure, of the same name,
has the runs, the images, P and the predicted classes.
"""

import json
from pathlib import Path

import checkout  # before lcm
import torch

from lcm.errors import UserError, exit_on_user_error, nearest, printable
from lcm.files import unwritable, write
from lcm.reporting import figures
from lcm.reporting.captions import network_titles, trained_on
from lcm.runs.load import class_names, data_of, load_run, read_finished
from lcm.score_cam import score_cam
from lcm.score_cam.figure import draw, facts
from lcm.score_cam.pictures import from_test_set, read_pictures, shown
from lcm.training.device import choose_device


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    for file in options.out:
        if file.suffix.lower() not in figures.METADATA or file.stem == "run":
            raise UserError(
                f"--out {file}: the name must end in {', '.join(figures.METADATA)}, and not be "
                "`run`, since a .json of the same name is written beside it"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)  # before long work
        except OSError as error:
            raise unwritable(file, error) from error
    # All inputs are read before the first heatmap, which takes a forward pass for each channel.
    states = [read_finished(directory) for directory in options.runs]
    data = data_of(options.runs, states, options.root)
    sources, names, images, classes = images_of(options, data)
    device = choose_device(options.device)
    titles, cams = network_titles(states), []
    for title, directory in zip(titles, options.runs, strict=True):
        network, _ = load_run(directory)
        try:
            cam = score_cam(
                network.to(device),
                images.to(device),
                classes,
                layer=options.layer,
            )
        except ValueError as error:
            raise UserError(f"{directory}: {error}") from error
        # The figure makes NumPy arrays of them, which a GPU's tensors do not allow.
        cams.append(cam._make(part.cpu() for part in cam))
        shares = " ".join(f"{p:.4f}" for p in cams[-1].probability.tolist())
        print(f"{title}: P = {shares}", flush=True)

    heading = f"Score-CAM of networks trained on {trained_on(states)}"
    known = class_names(data)
    figure = draw(heading, titles, names, known, shown(images, data.mean, data.std), cams)
    for file in options.out:
        figures.save(figure, file)
    said = facts(heading, titles, states, options.layer, sources, names, known, cams)
    beside = options.out[0].with_suffix(".json")
    write(beside, json.dumps(said, indent=1) + "\n")
    print(", ".join(map(str, [*options.out, beside])))


def images_of(options, data):
    """(sources, names, images normalised (N, 3, H, W), classes (N,) or None: the predicted)."""
    if options.image:
        sources = [str(file) for file in options.image]
        names, classes = [printable(file.name) for file in options.image], None
        images = read_pictures(options.image, data.image_size, data.mean, data.std)
    else:
        sources, images, classes = from_test_set(data.test(1), options.index)
        names = [printable(data.classes[label]) for label in classes.tolist()]
    if options.explained is not None:
        if options.explained not in data.classes:
            known = nearest(options.explained, data.classes)
            raise UserError(
                f"--class {options.explained}: no class of {data.name}"
                f"{known or '; its classes: ' + ', '.join(data.classes)}"
            )
        classes = torch.full((len(images),), data.classes.index(options.explained))
    return sources, names, images, classes


def parse(arguments):
    parser = checkout.parser(__doc__, config_dir=True)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--index",
        nargs="+",
        type=int,
        metavar="I",
        help="numbers in the test set, from 0 (default: four, evenly spread, not picked)",
    )
    which.add_argument("--image", nargs="+", type=Path, metavar="FILE", help="pictures of your own")
    parser.add_argument(
        "--class", dest="explained", metavar="NAME", help="the class of the heatmaps"
    )
    parser.add_argument(
        "--root", metavar="FOLDER", help="folder of the data set (default: the runs')"
    )
    parser.add_argument(
        "--layer", help="dotted name; default: the last map before the global pooling"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument(
        "--out",
        nargs="+",
        type=Path,
        default=[Path("score_cam.png")],
        metavar="FILE",
        help="pictures, each ending in .png, .svg or .pdf; default: score_cam.png",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
