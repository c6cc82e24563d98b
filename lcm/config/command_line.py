"""What a command line asks for, checked before Hydra composes it: Hydra would stop at the first problem, and advise `+typo=1`."""

import functools
import importlib.util

from lcm.config.compose import GROUPS, choices, flatten, load, no_such_option, settings
from lcm.errors import nearest

EXTRAS = {
    "parallel": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}


@functools.lru_cache(maxsize=1)
def known_keys():
    """Every key that some combination of the groups has, flat: {"schedule.epochs", ...}."""
    keys = set(flatten(settings()))
    for group in GROUPS:
        for name in choices(group):
            keys |= {f"{group}.{key}" for key in flatten(load(group, name)) if key != "defaults"}
    return frozenset(keys)


def override_problems(arguments, multirun=False):
    """Every problem in a command line's overrides that is clear without composing, each as one line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides, problems = [], []
    for text in arguments:
        try:
            overrides.append((text, OverridesParser.create().parse_override(text)))
        except HydraException as error:
            problems.append(
                f"{text}: not an override of the form key=value ({str(error).splitlines()[0]}); a value with special "
                "characters takes two pairs of quotes: key=\"'value'\""
            )
    multirun = multirun or any(override.key_or_group == "experiment" for _, override in overrides)
    return problems + [
        problem
        for text, override in overrides
        for problem in _problems_of(text, override, multirun)
    ]


def _problems_of(text, override, multirun):
    """The problems of one override."""
    from hydra.core.override_parser.types import ChoiceSweep

    key, value, groups = override.key_or_group, override.value(), {*GROUPS, "experiment"}
    extra = EXTRAS.get(str(value)) if key == "hydra/launcher" else None
    if extra and not importlib.util.find_spec(extra):
        return [f"{text}: this launcher is not installed; pip install -e '.[{value}]'"]
    if key.startswith("hydra"):
        return []
    if override.is_sweep_override() and not multirun:
        return [f"{text}: several values are a sweep, one run each; add -m"]
    if key == "experiment" and override.is_sweep_override():
        return [f"{text}: each experiment has its own grid; run them one after another"]
    if key in groups:
        names = (
            value.list
            if isinstance(value, ChoiceSweep)
            else []
            if override.is_sweep_override()
            else [value]
        )
        wrong = [
            name
            for name in names
            if name not in choices(key) and (key, name) != ("experiment", None)
        ]
        return [no_such_option(key, name) for name in wrong]
    if key.partition(".")[0] in GROUPS and key.endswith(".name"):
        return [
            f"{text}: the name cannot be changed by itself; write {key.partition('.')[0]}={value}"
        ]
    if key not in known_keys() and not any(known.startswith(f"{key}.") for known in known_keys()):
        same_end = [
            f"; nearest: {known}" for known in sorted(known_keys()) if known.endswith(f".{key}")
        ]
        hint = [
            *same_end,
            nearest(key, known_keys() | groups) or "; python train.py --help lists them all",
        ][0]
        return [f"{text}: no such key{hint}"]
    return []


def composition_problem(error):
    """Why Hydra could not compose a config, as one line."""
    lines = [
        line.strip()
        for e in (error, error.__cause__)
        if e is not None
        for line in str(e).splitlines()
    ]
    missing = [line for line in lines if line.endswith("is not in struct")]
    if missing and lines[0].startswith("Could not override"):
        return f"{error.__cause__.full_key}: this combination has no such key"
    if "Available options in" in str(error):  # hydra/launcher=nope
        options = str(error).split(":\n", 1)[-1].split("\nConfig search path", 1)[0].split()
        return f"{lines[0]}; choose from {', '.join(options)}"
    reasons = [
        line.rstrip(".")
        for line in lines
        if line and not line.startswith(("To append", "Config search path"))
    ]
    return ": ".join(dict.fromkeys(reasons[:2]))
