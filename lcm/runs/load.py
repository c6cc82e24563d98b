"""Finished runs, read again: their networks with the trained weights, and their data."""

from pathlib import Path

from lcm.config.compose import known_targets, use_config_dir
from lcm.data import build_data
from lcm.errors import UserError, one_line, printable
from lcm.models.build import build_network
from lcm.runs.source import changed_since
from lcm.runs.state import read_state
from lcm.training.checkpoint import NAME, newest


def load_run(directory, config_dir=None):
    """A finished run's network and config: `network, config = lcm.load_run(DIRECTORY)`.

    Args:
        directory: of the run.
        config_dir: a folder of further YAML files, as train.py's --config-dir.

    Returns:
        The network with the trained weights, on the CPU, in evaluation mode; and the resolved
        config, nested plain dicts. A run.json may come from anybody: each `_target_` is that of the
        file in configs/, or in `config_dir`, with the same name.

    Raises:
        UserError: no run, not finished, a name that these lack, weights of another network.
    """
    directory = Path(directory)
    state = read_finished(directory)
    saved = newest(directory, state.get("config_hash"))
    # The last checkpoint of a finished run names the epoch after its last.
    if saved is None or saved["epoch"] <= state["epochs"]:  # the one before a damaged one
        raise UserError(f"{directory} has lost its {NAME}: put it back, or train the run anew")
    if config_dir:
        use_config_dir(config_dir)
    config = known_targets(state["config"])
    try:
        changed = changed_since(config, state)
    except ImportError as error:
        raise UserError(
            f"{directory}: {one_line(error.__cause__ or error)}: a module of one's own has to be "
            "in the working directory, or in PYTHONPATH"
        ) from error
    if changed:
        raise UserError(
            f"{changed} has changed since {directory} was trained; {directory / 'source'} has the "
            "file as it was"
        )
    # of class folders, whose config has no number, it was counted
    classes = config["data"].get("num_classes") or state.get("num_classes")
    try:
        network = build_network(config["model"], config["attention"], classes, config["seed"])
        network.load_state_dict(saved["model"])
    except (KeyError, RuntimeError, TypeError) as error:
        # The first line of load_state_dict's text names the class alone, the last one a key.
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{directory}: its weights do not fit the network of its run.json ({reason})"
        ) from error
    network.eval()
    return network, config


def read_finished(directory):
    """The run.json of a finished run. Raises UserError where it is none."""
    if not (directory / "run.json").is_file():
        raise UserError(
            f"{directory} is no run: name a directory that holds run.json and checkpoint.pt"
        )
    state = read_state(directory)
    if state["state"] != "finished":
        raise UserError(
            f"{directory} is not finished, its state is {state['state']!r}: "
            "the command that trained it continues it"
        )
    return state


def data_of(directories, states, root=None):
    """The data set that all runs, with these run.json, were trained on.

    root: the data set's folder now; None: that of the training.
    Raises UserError where the images of a run are others.
    """
    config = known_targets(states[0]["config"])["data"]
    data = build_data(config | ({"root": root} if root and "root" in config else {}))
    for directory, state in zip(directories, states, strict=True):
        if state["data_fingerprint"] != data.fingerprint:
            raise UserError(
                f"{directory} was trained on {state['data']}, and not on this copy of {data.name}: "
                "name runs of one data set, and give --root the folder of its copy"
            )
    return data


def class_names(data):
    """The names of the classes that a network of this data set has.

    A folder may hold fewer classes than the network has outputs; those that it lacks are numbers.
    """
    lacking = range(len(data.classes), data.num_classes)
    return [printable(name) for name in data.classes] + [str(number) for number in lacking]
