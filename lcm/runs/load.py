"""Finished runs, read again: their networks with the trained weights, and their data."""

from pathlib import Path

from lcm.config.compose import known_targets, use_config_dir
from lcm.data import build_data
from lcm.errors import UserError
from lcm.models.build import build_network
from lcm.runs.state import read_state
from lcm.training.checkpoint import load_model_weights


def load_run(directory, config_dir=None):
    """A finished run's network and config: `network, config = lcm.load_run(DIRECTORY)`.

    Args:
        directory: of the run, or the checkpoint.pt in it.
        config_dir: a folder of further YAML files, as train.py's --config-dir.

    Returns:
        The network with the trained weights, on the CPU, in evaluation mode; and the resolved
        config, nested plain dicts. A run.json may come from anybody: each `_target_` is that of the
        file in configs/, or in `config_dir`, with the same name.

    Raises:
        UserError: no run, not finished, a name that these lack, weights of another network.
    """
    directory, state = read_finished(directory)
    if config_dir:
        use_config_dir(config_dir)
    config = known_targets(state["config"])
    weights = load_model_weights(directory)
    counted = state.get("num_classes")  # of class folders, whose config has no number
    classes = config["data"].get("num_classes") or counted
    try:
        network = build_network(config["model"], config["attention"], classes)
        network.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{directory}: its weights do not fit the network of its run.json ({reason})"
        ) from error
    return network.eval(), config


def read_finished(path):
    """(directory, run.json) of a finished run, from its directory or the checkpoint.pt in it.

    Raises UserError where it is none.
    """
    path = Path(path)
    directory = path.parent if path.name == "checkpoint.pt" else path
    if not (directory / "run.json").is_file():
        raise UserError(f"{path} is no run: name a directory that holds run.json and checkpoint.pt")
    state = read_state(directory)
    if state["state"] != "finished":
        raise UserError(
            f"{directory} is not finished, its state is {state['state']!r}: "
            "the command that trained it continues it"
        )
    return directory, state


def data_of(runs, root=None):
    """The data set that all runs, pairs (directory, run.json), were trained on.

    root: the data set's folder now; None: that of the training.
    Raises UserError where the images differ.
    """
    _, first = runs[0]
    place = {} if root is None else {"root": root}
    data = build_data(known_targets(first["config"])["data"] | place)
    for directory, state in runs:
        if state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{directory} was trained on another copy of {data.name} than the one under "
                f"{root or 'data.root'}, or on other data: give --root the folder of that copy"
            )
    return data


def class_names(data):
    """The names of the classes that a network of this data set has.

    A folder may hold fewer classes than the network has outputs; those that it lacks are numbers.
    """
    return [*data.classes, *map(str, range(len(data.classes), data.num_classes))]
