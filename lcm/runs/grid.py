"""The runs that a sweep's command line stands for, all checked before the first starts."""

import contextlib
import functools
import itertools
import json
import re
from collections import defaultdict
from typing import NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import RangeSweep
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import OmegaConf

from lcm.config.check import check, typed
from lcm.config.command_line import for_hydra, override_problems
from lcm.config.compose import (
    COMPOSITION_ERRORS,
    GROUPS,
    SHIPPED,
    composition_problem,
    load_all,
    plain,
    resolve,
    searching,
)
from lcm.errors import UserError, listed, one_line, plural
from lcm.runs.directory import run_directory

SIZES = ("model", "attention")  # the groups that decide whether an attention module fits a site
SEED = re.compile(r"seed=(0|[1-9]\d*)")


class GridRun(NamedTuple):
    """One point of a grid: its name ("attention=se seed=1"), Hydra's overrides for it, its resolved
    config as nested dicts.
    """

    name: str
    overrides: list
    config: dict

    @property
    def directory(self):
        return run_directory(self.config)


def problems(config):
    """Every problem of a composed config, a line each; [] where there is none.

    What is not the repository's own is imported. Where a model or an attention is not one of the
    repository's files, unchanged, a network is built, and tells whether the module fits.
    """
    if found := check(config):
        return found
    targets = {group: config[group].get("_target_") for group in (*SIZES, "data")}
    for target in {*targets.values()} - SHIPPED.keys():
        try:
            get_object(target)
        except (Exception, SystemExit) as error:  # whatever a module of the user's own raises
            return [f"_target_ {target} cannot be imported: {one_line(error.__cause__ or error)}"]
    # What the repository ships fits, which its tests show: no time is spent on a network.
    expected = plain(config)
    if all(
        config[group]["name"] in SHIPPED.get(targets[group], ())
        and config[group] == expected[group]
        for group in SIZES
    ):
        return []
    data = config["data"]
    classes = data["num_classes"] or 2  # counted only when the images are read
    # As text, which a cache can hash.
    facts = [config["model"], config["attention"], classes, data["image_size"]]
    return _site_problems(
        json.dumps([*facts, config["schedule"], config["channels_last"], config["precision"]])
    )


@functools.cache  # of what it depends on: a grid asks for every seed, and every run once more
def _site_problems(arguments):
    # Not at the top: status.py looks at a grid without torch.
    from lcm.models.build import site_problems
    from lcm.training.state import rehearse

    *facts, schedule, channels_last, precision = json.loads(arguments)
    return site_problems(
        *facts,
        functools.partial(
            rehearse, schedule=schedule, channels_last=channels_last, bf16=precision == "bf16"
        ),
    )


def grid_of(arguments, config_dir=None):
    """Every GridRun that train.py would train with these arguments, as `grid` returns it."""
    if found := override_problems(arguments, multirun=True, config_dir=config_dir):
        raise listed("the arguments have problems:", found)
    with searching() as places:
        # What Hydra's own main gives to a sweeper.
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration(
            "train", [*places, *for_hydra(arguments)], RunMode.MULTIRUN
        )
        return grid(loader, master, arguments)


def grid(loader, master, arguments):
    """Every GridRun of a sweep, composed and checked; one that the grid names twice is there once.

    `arguments`: the command line's overrides; the grid of an experiment is in
    `master.hydra.sweeper.params`. Raises UserError with every problem of every run, each once, with
    the runs that have it.
    """
    params = master.hydra.sweeper.params or {}
    # The experiment's grid first: a value of the command line comes later and replaces its own.
    # A list of a group's names is what "a,b" is: no group has a list for a value.
    named = {
        key: ",".join(map(str, value)) if key in GROUPS and OmegaConf.is_list(value) else value
        for key, value in params.items()
    }
    texts = [*(f"{key}={value}" for key, value in named.items()), *arguments]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(texts)
    swept, values = {}, {}  # by key; the last one counts
    for override in overrides:
        # `seed=0` and `++seed=5` set one key.
        key = override.get_key_element().removeprefix("++")
        swept[key] = override.is_sweep_override()
        values[key] = _values(key, override)
    # A row is one run: (KEY=VALUE, ...). A dict drops doubles and keeps the order.
    rows = list(dict.fromkeys(itertools.product(*values.values())))
    for group in filter(swept.get, GROUPS):
        load_all(group)  # in one composition, before the check of each run asks for its own

    @functools.cache  # Hydra takes about a tenth of a second for a config
    def composed(*row):
        config = loader.load_sweep_config(master, list(row))
        return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])

    runs, found = {}, defaultdict(list)
    for row in rows:
        name = " ".join(text for text in row if swept[text.partition("=")[0]])
        config, wrong = _checked(row, composed)
        for problem in wrong:
            found[problem].append(name)
        if not wrong:
            run = GridRun(name, list(row), config)
            if (other := runs.setdefault(run.directory, run)) is not run:
                raise UserError(
                    f"{other.name} and {name} are one run, stored in one directory: its name does "
                    "not depend on device, threads and other keys that no hash contains; give each "
                    "of these one value, and leave run_directory out"
                )
    if found:
        lines = [
            f"{problem}\n    in {len(names)} of {plural(len(rows), 'run')}: {names[0]}"
            + (" ..." if names[1:] else "")
            for problem, names in found.items()
        ]
        raise listed("the grid has problems, nothing was started:", lines)
    return list(runs.values())


def _values(key, override):
    """Every KEY=VALUE that an override stands for, as text."""
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    value = override.value()
    if isinstance(value, RangeSweep) and {*map(type, (value.start, value.stop, value.step))} - {
        int
    }:
        # 0.1 + 0.1 + 0.1 is another number, and another run, than 0.3.
        raise UserError(
            f"{override.input_line.removeprefix('++')}: steps that are not whole are not exact; "
            "write the values out"
        )
    found = []
    with contextlib.suppress(ValueError):  # range(0, 5, 0)
        found = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    if not found:
        raise UserError(
            f"the grid cannot be expanded: {override.input_line}: this has no value, or no list of "
            "values; write them out, as in seed=0,1, or as seed='range(2)'"
        )
    return [f"{key}={value}" for value in found]


def _checked(row, composed):
    """(the resolved config of a row of overrides, its problems); None where it does not compose.

    composed: from overrides to a config. Runs that differ in the seed alone share one.
    """
    seed = next((match for text in row if (match := SEED.fullmatch(text))), None)
    try:
        # A seed that is a plain number is put into the shared config, before anything is
        # resolved: what refers to it, as runs='out/${seed}' does, is open until then.
        config = composed(*(text for text in row if not seed or text != seed[0]))
        if seed:
            config.seed = int(seed[1])
        config = typed(resolve(config))
    except COMPOSITION_ERRORS as error:
        return None, [composition_problem(error)]
    except UserError as error:
        return None, [str(error)]
    return config, problems(config)
