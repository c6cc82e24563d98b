"""Score-CAM of recorded runs: their data, the images to explain, their networks with the trained weights."""

import torch

from lcm.config.compose import known_targets
from lcm.data import build_data
from lcm.errors import UserError
from lcm.models.build import build_network
from lcm.score_cam import score_cam
from lcm.training.checkpoint import load_model_weights
from lcm.training.device import choose_device, keep_pages


def data_of(runs, root=None):
    """The data set that all runs, pairs (directory, run.json), were trained on; `root`: its folder now. Raises UserError."""
    directory, first = runs[0]
    for other, state in runs[1:]:
        if state.get("data") != first.get("data"):
            raise UserError(
                f"{other} is a run on {state.get('data')}, {directory} one on {first.get('data')}"
            )
    data = build_data(
        known_targets(first["config"])["data"] | ({} if root is None else {"root": root})
    )
    for directory, state in runs:
        if state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{directory} was trained on another copy of {data.name} than the one under {root or 'data.root'}: "
                "give --root the folder of that copy"
            )
    return data


def examples(data, indices):
    """(numbers in the test set, normalised images (N, 3, H, W), labels (N,)); four, evenly spread, where no `indices` are given.

    Raises UserError for a number that the test set does not have.
    """
    batches = data.test(1)
    indices = indices or [batches.images * i // 4 for i in range(4)]
    for index in indices:
        if not 0 <= index < batches.images:
            raise UserError(
                f"--index {index}: the test images of {data.name} are 0 to {batches.images - 1}"
            )
    epoch = batches.epoch(0)
    images, labels = zip(*(batches.prepare(epoch[index], "cpu") for index in indices), strict=True)
    return indices, torch.cat(images), torch.cat(labels)


def explain(run, data, images, labels, layer=None, chunk=64, device="auto"):
    """The `ScoreCAM` of one run's network for the true class of each image, on the CPU. Raises UserError."""
    directory, state = run
    keep_pages()
    device = choose_device(device)
    config = known_targets(state["config"])  # a run.json may come from anybody
    weights = load_model_weights(directory)
    try:
        network = build_network(config["model"], config["attention"], num_classes=data.num_classes)
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{directory}: its weights do not fit the network of its run.json ({reason})"
        ) from error
    network.to(device)
    try:
        cam = score_cam(network, images.to(device), labels, layer=layer, chunk=chunk)
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from error
    return type(cam)(*(part.cpu() for part in cam))
