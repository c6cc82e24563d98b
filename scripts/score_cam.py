"""Figure 4: Score-CAM heatmaps of several networks on the same images (lcm/score_cam.py has the method).

    python scripts/score_cam.py                                      # digits, ResNet-20: no attention, SE and LCM2
    python scripts/score_cam.py --data cifar10 --index 3 14 159 265  # these images of the test set
    python scripts/score_cam.py runs/digits/resnet20/*/seed0-*       # these runs

Without run directories it takes the newest finished runs that differ in nothing but the attention. For each image the figure
has the input and, for each network, the heatmap above, the overlay below, and P, the softmax probability of the true class.
Writes OUT.png, OUT.svg and OUT.json (which runs and images, P, the predicted class).
"""

import argparse
from pathlib import Path

from lcm.errors import exit_on_user_error
from lcm.reporting import heatmaps
from lcm.runs import finished


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    runs = [finished.read_finished(path) for path in options.runs] or finished.newest_arms(
        options.runs_root, options.data, options.model, options.attention, options.seed
    )

    from lcm.runs import explained  # after what fails fast

    data = explained.data_of(runs, options.root)
    numbers, images, labels = explained.examples(data, options.index)
    states, cams = [state for _, state in runs], []
    titles = heatmaps.titles(states)
    for title, run in zip(titles, runs, strict=True):
        cams.append(
            explained.explain(
                run, data, images, labels, options.layer, options.chunk, options.device
            )
        )
        print(
            f"{title}: P = {' '.join(f'{p:.4f}' for p in cams[-1].probability.tolist())}",
            flush=True,
        )
    figure = heatmaps.draw(titles, data.classes, (data.mean, data.std), images, labels, cams)
    heatmaps.save(
        options.out, figure, heatmaps.facts(states, data, options.layer, numbers, labels, cams)
    )
    print(f"{options.out}.png, {options.out}.svg, {options.out}.json")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run directories, or their checkpoint.pt"
    )
    found = parser.add_argument_group("runs by name, where no RUN is given")
    found.add_argument(
        "--runs-root", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs"
    )
    found.add_argument("--data", default="digits", help="default: digits")
    found.add_argument("--model", default="resnet20", help="default: resnet20")
    found.add_argument(
        "--attention", nargs="+", default=["none", "se", "lcm2"], help="default: none se lcm2"
    )
    found.add_argument("--seed", type=int, help="default: the newest that all arms have")
    evenly = "numbers in the test set, from 0; default: four, evenly spread, so that nobody has picked them"
    parser.add_argument("--index", nargs="+", type=int, metavar="I", help=evenly)
    parser.add_argument(
        "--root", metavar="FOLDER", help="folder of the data set; default: that of the training"
    )
    parser.add_argument(
        "--layer", help="dotted name; default: the last map before the global pooling"
    )
    parser.add_argument(
        "--chunk", type=int, default=64, help="masked images in one forward pass; default: 64"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument(
        "--out", type=Path, default=Path("results/figure4"), metavar="STEM", help="results/figure4"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix in (".png", ".svg", ".json"):
        options.out = options.out.with_suffix("")
    return options


if __name__ == "__main__":
    main()
