"""Where a run is stored: its config alone decides, so that the same command finds it again."""

from datetime import datetime, timezone
from pathlib import Path

from lcm.config.identity import config_hash


def run_name(config):
    """The path of this config's run below `runs`: `<data>/<model>/<attention>/seed<k>-<hash8>`."""
    names = [data_name(config), *(config[group]["name"] for group in ("model", "attention"))]
    return "/".join([*names, f"seed{config['seed']}-{config_hash(config)[:8]}"])


def data_name(config):
    """The data set's name in paths and tables: its label, where it has one."""
    return config["data"].get("label") or config["data"]["name"]


def run_directory(config):
    """The run's directory: `config["run_directory"]` if set, else by name below `runs`."""
    return Path(config["run_directory"] or Path(config["runs"]) / run_name(config))


def now():
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
