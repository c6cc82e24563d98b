"""Figure 4: Score-CAM heatmaps of several networks on the same images (lcm/score_cam.py has the method).

    python scripts/score_cam.py                                      # digits, ResNet-20: no attention, SE and LCM2
    python scripts/score_cam.py --data cifar10 --index 3 14 159 265  # these images of the test set
    python scripts/score_cam.py runs/digits/resnet20/*/seed0-*       # these runs
    python scripts/score_cam.py --data mini_imagenet --model resnet50 --images goose.jpg --classes n01855672

Without run directories it takes the newest finished runs that differ in nothing but the attention. For each image the figure
has the input and, for each network, the heatmap above, the overlay below, and P, the softmax probability of the true class.
Writes OUT.png, OUT.svg and OUT.json (which runs and images, P, the predicted class).
"""

import argparse
import difflib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lcm.config.options import known_targets
from lcm.config.options import load as load_config
from lcm.errors import UserError, exit_on_user_error
from lcm.models.build import build_network
from lcm.reporting.heatmaps import draw, save
from lcm.reporting.protocol import NETWORK_TITLE
from lcm.runs.state import read_state
from lcm.score_cam import VARIANTS, score_cam

ATTENTION_TITLE = {"se": "SE", "cbam": "CBAM", "nonlocal": "Non-local", "gc": "GC", "lcm1": "LCM1", "lcm2": "LCM2"}


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    if options.runs:
        runs = name_runs([read_run(path) for path in options.runs])
    else:
        runs = name_runs(find_runs(options.runs_root, options.data, options.model, options.attention, options.seed))

    from lcm.training.device import choose_device, keep_pages  # after what fails fast

    keep_pages()
    device = choose_device(options.device)
    data = load_data(runs, options.root)
    examples = from_files(data, options.images, options.classes)
    if options.index or not examples:
        examples = from_test_set(data, options.index) + examples
    images = torch.stack([example.image for example in examples]).to(device)
    labels = torch.tensor([example.label for example in examples], device=device)
    cams = []
    for run in runs:
        cams.append(explain(run, data, images, labels, options))
        shown = " ".join(f"{p:.4f}" for p in cams[-1].probability.tolist())
        print(f"{run.title}: P = {shown}", flush=True)
    save(
        options.out,
        draw([run.title for run in runs], data.classes, normalisation(data), examples, cams, options.columns),
        record(runs, data, examples, cams, options),
    )


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories, or their checkpoint.pt")
    found = parser.add_argument_group("runs by name, where no RUN is given")
    found.add_argument("--runs-root", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    found.add_argument("--data", default="digits", help="default: digits")
    found.add_argument("--model", default="resnet20", help="default: resnet20")
    found.add_argument("--attention", nargs="+", default=["none", "se", "lcm2"], help="default: none se lcm2")
    found.add_argument("--seed", type=int, help="default: the newest that all arms have")
    shown = parser.add_argument_group("images")
    shown.add_argument("--index", nargs="+", type=int, default=[], metavar="I", help="places in the test set, from 0; "
                       "default: four, evenly spread, so that nobody has picked them")  # fmt: skip
    shown.add_argument("--images", nargs="+", type=Path, default=[], metavar="FILE", help="image files")
    shown.add_argument("--classes", nargs="+", default=[], metavar="C", help="true class of each file, or one for all")
    shown.add_argument("--root", metavar="FOLDER", help="where the data lie; default: where they lay in training")
    parser.add_argument("--variant", choices=VARIANTS, default="official", help="of Score-CAM; default: official")
    parser.add_argument("--layer", help="dotted name; default: the last map before the global pooling")
    parser.add_argument("--chunk", type=int, default=64, help="masked images in one forward pass; default: 64")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: auto")
    parser.add_argument("--columns", type=int, help="images side by side; default: 1, or 2 from four images on")
    parser.add_argument("--out", type=Path, default=Path("results/figure4"), metavar="STEM", help="results/figure4")
    options = parser.parse_args(arguments)
    for name in ("chunk", "columns"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.out.suffix in (".png", ".svg", ".json"):
        options.out = options.out.with_suffix("")
    return options


# -------------------------------------------------------------------------------------------------------------- runs


class Run(NamedTuple):
    directory: Path
    state: dict  # run.json

    title: str


def name_runs(states):
    """(directory, run.json) of several runs -> `Run`s; the title tells the seed where it tells runs apart."""
    titles = []
    for _, state in states:
        titles.append(NETWORK_TITLE.get(state["model"], state["model"]).split(" ")[0])
        if state["attention"] != "none":
            titles[-1] += f" + {ATTENTION_TITLE.get(state['attention'], state['attention'])}"
    if len(set(titles)) < len(titles):
        titles = [f"{title}, seed {state['seed']}" for title, (_, state) in zip(titles, states, strict=True)]
    return [Run(*pair, title) for pair, title in zip(states, titles, strict=True)]


def read_run(path):
    """(directory, run.json) of a finished run, from its directory or the checkpoint in it."""
    directory = path.parent if path.name == "checkpoint.pt" else path
    if not (directory / "run.json").is_file():
        raise UserError(f"{path} is no run: name a directory that holds run.json and checkpoint.pt")
    state = read_state(directory)
    if state.get("state") != "finished":
        raise UserError(
            f"{directory} is not finished, its state is {state.get('state')!r}: the command that began it continues it"
        )
    return directory, state


def find_runs(root, data, model, attentions, seed):
    """For each attention (directory, run.json) of the newest finished run, all of one seed, schedule and deviations."""
    arms = {}  # attention -> {protocol: the newest run of it}
    for attention in attentions:
        arms[attention] = {}
        for file in sorted((root / data / model / attention).glob("seed*/run.json")):
            state = read_state(file.parent)
            if state.get("state") != "finished" or seed not in (None, state["seed"]):
                continue
            kind = ("seed", "schedule", "precision", "compile", "deviations", "data_fingerprint")
            protocol = json.dumps([state[key] for key in kind])
            if protocol not in arms[attention] or state["end"] > arms[attention][protocol][1]["end"]:
                arms[attention][protocol] = file.parent, state
    missing = [attention for attention, runs in arms.items() if not runs]
    if missing:
        for group, name in (("data", data), ("model", model), *(("attention", name) for name in missing)):
            load_config(group, name)  # says so where there is no such thing to train
        command = f"python train.py data={data} model={model} attention={','.join(missing)}"
        command += f" seed={seed or 0}" + (" -m" if len(missing) > 1 else "")
        of_seed = "" if seed is None else f" of seed {seed}"
        raise UserError(
            f"{root / data / model} has no finished run{of_seed} with attention {', '.join(missing)}: train it ({command}), "
            "or name other runs (--runs-root, --data, --model, --attention)"
        )
    common = set.intersection(*(set(runs) for runs in arms.values()))
    if not common:
        have = "\n".join(f"  {name}: {_protocols(runs.values())}" for name, runs in arms.items())
        raise UserError(f"no seed and schedule that all arms have finished runs of:\n{have}\nname the runs to compare")
    newest = max(common, key=lambda protocol: max(runs[protocol][1]["end"] for runs in arms.values()))
    return [runs[newest] for runs in arms.values()]


def _protocols(runs):
    return "; ".join(f"seed {s['seed']}, {s['schedule']} {s['deviations'] or ''}".rstrip() for _, s in runs)


def load_data(runs, root=None):
    """The data set that all runs were trained on."""
    from lcm.data import build_data

    first = runs[0].state
    for run in runs[1:]:
        if run.state["data"] != first["data"]:
            raise UserError(
                f"{run.directory} is a run on {run.state['data']}, {runs[0].directory} one on {first['data']}"
            )
    data = build_data(known_targets(first["config"])["data"] | ({} if root is None else {"root": root}))
    for run in runs:
        if run.state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{run.directory} was trained on another copy of {data.name} than the one under {root or 'data.root'}: "
                "give --root the folder of that copy"
            )
    return data


# ------------------------------------------------------------------------------------------------------------ images


class Example(NamedTuple):
    source: int | str  # place in the test set, or file
    image: torch.Tensor  # (3, H, W), normalised
    label: int


def from_test_set(data, places):
    """Examples from the test set; without places four, evenly spread."""
    batches = data.test(1)
    for place in places:
        if not 0 <= place < batches.images:
            raise UserError(f"--index {place}: the test images of {data.name} are 0 to {batches.images - 1}")
    epoch, examples = batches.epoch(0), []
    for place in places or [batches.images * i // 4 for i in range(4)]:
        images, labels = batches.prepare(epoch[place], "cpu")
        examples.append(Example(place, images[0], int(labels[0])))
    return examples


def normalisation(data):
    """(mean, std) of the pixels in [0, 1], a value for each colour, with which a data set normalises."""
    from lcm.data.mini_imagenet import dataset as mini_imagenet

    if isinstance(data, mini_imagenet.MiniImageNet):
        return mini_imagenet.MEAN, mini_imagenet.STD
    return data.mean, data.std


def from_files(data, files, classes):
    """Examples from image files: short side to 8/7 of the network's size (32-pixel networks: to it), central square."""
    if len(classes) == 1:
        classes = classes * len(files)
    if len(classes) != len(files):
        raise UserError(
            f"--images names {len(files)} files, --classes {len(classes)} classes: one each, or one for all"
        )
    labels = [class_index(data, name) for name in classes]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(data))
    examples = []
    for file, label in zip(files, labels, strict=True):
        pixels = torch.from_numpy(read_picture(file, data.image_size)).permute(2, 0, 1) / 255
        examples.append(Example(str(file), (pixels - mean) / std, label))
    return examples


def class_index(data, name):
    """A class's index from its name, or from its number."""
    if name in data.classes:
        return data.classes.index(name)
    if name.isdecimal() and int(name) < len(data.classes):
        return int(name)
    near = difflib.get_close_matches(name, data.classes, n=1)
    hint = f"; nearest: {near[0]}" if near else ""
    raise UserError(f"--classes {name}: {data.name} has no such class, and {len(data.classes)} in all{hint}")


def read_picture(file, size):
    """The central square of an image file as uint8 (size, size, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"--images {file}: no such file") from error
    except Exception as error:  # Pillow raises many kinds
        raise UserError(f"--images {file}: not readable as an image ({type(error).__name__}: {error})") from error
    short = size if size < 64 else round(size / 0.875)
    scale = short / min(picture.size)
    picture = picture.resize([max(short, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = ((side - size) // 2 for side in picture.size)
    return np.array(picture.crop((left, top, left + size, top + size)))


# ------------------------------------------------------------------------------------------------------------ figure


def explain(run, data, images, labels, options):
    """The `ScoreCAM` of one run's network for the true class of each image, on the CPU."""
    from lcm.training.checkpoint import load_model_weights
    from lcm.training.folding import fold

    config = known_targets(run.state["config"])  # a run.json may come from anybody
    network = build_network(config["model"], config["attention"], num_classes=data.num_classes)
    try:
        network.load_state_dict(load_model_weights(run.directory))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{run.directory}: its weights do not fit the network of its run.json ({reason})") from error
    network.to(images.device)
    if options.layer is None:  # a named layer has to be there as it is
        network = fold(network, data.image_size)
    try:
        cam = score_cam(network, images, labels, variant=options.variant, layer=options.layer, chunk=options.chunk)
    except ValueError as error:
        raise UserError(f"{run.directory}: {error}") from error
    return type(cam)(*(part.cpu() for part in cam))


def record(runs, data, examples, cams, options):
    """What the figure shows, as plain values."""
    return {
        "variant": options.variant,
        "layer": options.layer,
        "data": data.name,
        "networks": [
            {"title": run.title, "run": run.state["run"], "config_hash": run.state["config_hash"]} for run in runs
        ],
        "images": [
            {
                "image": example.source,
                "class": data.classes[example.label],
                "P": [round(float(cam.probability[i]), 6) for cam in cams],
                "predicted": [data.classes[int(cam.predicted[i])] for cam in cams],
            }
            for i, example in enumerate(examples)
        ],
    }


if __name__ == "__main__":
    main()
