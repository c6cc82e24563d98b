"""What a command line asks for, checked before Hydra composes it: Hydra would stop at the first
problem, and advise `+typo=1`.
"""

import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from lcm.config import compose
from lcm.config.compose import (
    GROUPS,
    choices,
    compose_names,
    flatten,
    load_all,
    no_such_option,
    settings,
)
from lcm.errors import UserError, nearest

REFUSED = {  # settings of Hydra's that would only move or litter
    "hydra.job.chdir": "runs keep the working directory of the command",
    "hydra.run.dir": "a run's directory follows from its config; run_directory= chooses another",
    "hydra.sweep.dir": "a run's directory follows from its config; runs= chooses another",
    "hydra.sweep.subdir": "a run's directory follows from its config; runs= chooses another",
}


def refuse_flags(arguments):
    """Raise UserError for flags of Hydra's (parsed) that contradict each other."""
    commands = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in commands if getattr(arguments, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} cannot be given together: leave one out")


def override_problems(arguments, multirun=False, config_dir=None):
    """The problems of a command line's overrides that are clear without composing, a line each.

    From here on names are looked up where the command line says: in `config_dir` and
    hydra.searchpath too.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        reason = ": ".join(str(error).splitlines()[:2])
        return [
            f"{reason}; write key=value, a value with special characters in two pairs of quotes: "
            "key=\"'value'\""
        ]
    values = {override.key_or_group: override.value() for override in overrides}
    further = [compose.place_of(config_dir)] if config_dir else []
    compose.use_configs(compose.CONFIGS, further + list(values.get("hydra.searchpath") or []))
    # A group that is swept or misspelt has its default here.
    names = {group: values[group] for group in GROUPS if values.get(group) in choices(group)}
    try:
        usual = flatten(compose_names(names))
    except UserError:  # Hydra says it again
        usual = {}
    multirun = is_sweep(arguments, multirun)
    found = (_problem_of(override, multirun, usual) for override in overrides)
    # Its name is then the other's, and with `_self_` first so is all of it.
    renamed = [
        f"{group}={name}: its file ends up with the name of {called}: give it `name: {name}`, and "
        "no `_self_` before what it extends"
        for group, name in names.items()
        if (called := usual.get(f"{group}.name", name)) != name and called in choices(group)
        if not (compose.CONFIGS / group / f"{name}.yaml").is_file()  # schedule=cifar10 is cifar's
    ]
    return [*_shadowed(), *renamed, *filter(None, found)]


def is_sweep(arguments, multirun):
    """Whether overrides start a sweep, with `multirun` (-m) or without: experiments have a grid."""
    return multirun or any(map(re.compile("experiment=|hydra.mode=MULTIRUN").match, arguments))


def for_hydra(arguments):
    """A sweep's command line as Hydra composes it once before any run: keys of a group with `++`.

    The defaults need not have such a key (`data.root`): the choices that have it are in the grid,
    where `lcm.runs.grid` composes each run without the `++`.
    """
    key = re.compile(rf"({'|'.join(GROUPS)})\.[^=]+=")
    return [f"++{argument}" if key.match(argument) else argument for argument in arguments]


def _shadowed():
    """Own files that nothing would ever read: configs/ has their names, and comes first."""
    for place in compose.FURTHER:
        folder = Path(place.removeprefix("file://"))
        for file in sorted(folder.glob("*/**/*.yaml")):
            first = compose.CONFIGS / file.relative_to(folder)
            if first.exists() and not first.samefile(file):
                yield f"{file}: {first} has this name too, and comes first; take another name"


def _problem_of(override, multirun, usual):
    """The problem of one override, or None; `usual`: the flat keys of choices without sweeps."""
    text, key, value = override.input_line, override.key_or_group, override.value()
    swept = override.is_sweep_override()
    if key in REFUSED and value is not False:
        return f"{text}: {REFUSED[key]}; leave it out"
    if key.startswith("hydra"):
        return None
    if swept and not multirun:
        return f"{text}: several values are a sweep, one run each; add -m"
    if key == "experiment" and swept:
        return f"{text}: each experiment has its own grid; run them one after another"
    if override.is_delete() or (override.is_add() and key in (*GROUPS, "experiment")):
        return f"{text}: every setting has a value already; write {key}=VALUE, without + and ~"
    if options := choices(key):
        # What range(...) or glob(...) stands for is known once Hydra expands it.
        names = value.list if isinstance(value, ChoiceSweep) else [] if swept else [value]
        names = [getattr(name, "text", name) for name in names]  # of one in quotes
        wrong = [name for name in names if name not in options]
        return no_such_option(key, wrong[0]) if wrong else None
    if key in [f"{group}.name" for group in GROUPS]:
        return (
            f"{text}: the name cannot be changed by itself; write {key.partition('.')[0]}={value}"
        )
    # Nearly every key is found here; the search below composes every choice of every group.
    if _is_in(usual, key):
        return None
    options = {group: load_all(group) for group in GROUPS}
    known = flatten(settings()).keys() | {
        f"{group}.{name}"
        for group, choice in options.items()
        for keys in choice.values()
        for name in flatten(keys)
    }
    # A key of another choice: some runs of a grid may have it. Hydra refuses it in others.
    if _is_in(known, key):
        return None
    hint = nearest(key, known | {*GROUPS, "experiment"})
    return f"{text}: no such key{hint or '; python train.py --help lists them all'}"


def _is_in(known, key):
    """Whether a key is among flat ones, or some of them are below it."""
    return key in known or any(other.startswith(f"{key}.") for other in known)
