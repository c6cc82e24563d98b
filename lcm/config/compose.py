"""The YAML files of configs/: what each group offers, and what some names compose to without any override.

Configs are plain nested dicts everywhere in this package.
"""

import copy
import functools
from pathlib import Path

import yaml

from lcm.errors import UserError, nearest

GROUPS = ("data", "model", "attention", "schedule")
PACKAGE = (
    Path(__file__).resolve().parents[1]
)  # configs/ is beside it in a checkout, inside it in an installed wheel
CONFIGS = next(
    (folder for folder in (PACKAGE.parent / "configs", PACKAGE / "configs") if folder.is_dir()),
    None,
)


def use_configs(folder):
    """Read another folder of configs from here on."""
    global CONFIGS
    CONFIGS = Path(folder)
    for cached in (choices, _read, _plain):
        cached.cache_clear()


@functools.cache
def choices(group):
    """The names that a config group offers, sorted."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


@functools.cache
def _read(file):
    return yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))


def no_such_option(group, name):
    """The problem of a name that a group does not have, with the names that it has."""
    given = "null" if name is None else name
    return f"{group}={given}: no such {group}; choose from {', '.join(choices(group))}{nearest(name, choices(group))}"


def load(group, name):
    """One option of a group as a dict, interpolations unresolved. UserError where there is none of that name."""
    if name not in choices(group):
        raise UserError(no_such_option(group, name))
    return copy.deepcopy(_read(f"{group}/{name}"))


def settings():
    """What train.yaml has beside the groups: {"seed": 0, "device": "auto", ...}."""
    return {key: value for key, value in _read("train").items() if key not in ("defaults", "hydra")}


def plain(config):
    """The config that the names in `config` stand for, without any override: what deviations are measured against."""
    return copy.deepcopy(_plain(*(config[group]["name"] for group in GROUPS)))


@functools.cache
def _plain(*names):
    from omegaconf import OmegaConf

    base = settings() | {
        group: load(group, name) for group, name in zip(GROUPS, names, strict=True)
    }
    if base["model"]["family"] not in base["attention"].get(
        "paper", {}
    ):  # whose sizes the user has to give
        base["attention"] = {
            key: None if key != "paper" and "${" in str(v) else v
            for key, v in base["attention"].items()
        }
    return OmegaConf.to_container(OmegaConf.create(base), resolve=True)


def flatten(config, prefix=""):
    """{"schedule": {"epochs": 2}} -> {"schedule.epochs": 2}; lists and the choice of sites stay values."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "attention.sites":
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def known_targets(config):
    """`config` (of a run.json, which may come from anybody) with the `_target_` of each group as its YAML file has it.

    Raises UserError where a group's name is not an option of this checkout.
    """
    trusted = copy.deepcopy(config)
    for group in GROUPS:
        option = load(group, (config.get(group) or {}).get("name"))
        trusted[group] = {key: value for key, value in config[group].items() if key in option}
        trusted[group] |= {key: option[key] for key in ("_target_", "_convert_") if key in option}
    return trusted
