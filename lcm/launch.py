"""From the command line to a run: the overrides checked, Hydra's errors and ours turned into one message and an exit code."""

import contextlib
import difflib
import functools
import importlib.util
import os
import sys
import traceback

from lcm.config import CONFIGS, GROUPS, RULES, choices, flatten, load, plain
from lcm.errors import UserError
from lcm.job import run_one
from lcm.run import BAD_INPUT, FAILED, OWNED_ELSEWHERE, STOPPED, OwnedElsewhere
from lcm.training.failures import NotFinite, Stopped
from lcm.training.load import Load
from lcm.training.signals import StopRequest

LOAD = Load()  # from here on: how busy others keep the machine
STOP = StopRequest()  # one for the whole process
EXIT_CODES = {UserError: BAD_INPUT, OwnedElsewhere: OWNED_ELSEWHERE, Stopped: STOPPED, NotFinite: FAILED}
EXTRAS = {"parallel": "hydra_plugins.hydra_joblib_launcher", "slurm": "hydra_plugins.hydra_submitit_launcher"}
_composed = False


@functools.lru_cache(maxsize=1)
def known_keys():
    """Every key that some combination of the groups has, flat: {"schedule.epochs", ...}."""
    keys = set(RULES)
    names = {group: choices(group)[0] for group in GROUPS}
    base = plain({group: {"name": "cifar" if group == "schedule" else name} for group, name in names.items()})
    keys |= {key for key in flatten(base) if "." not in key or key.startswith("checkpoint.")}
    for group in GROUPS:
        for name in choices(group):
            keys |= {f"{group}.{key}" for key in flatten(load(group, name)) if key != "defaults"}
    return frozenset(keys)


def nearest(word, words):
    """`; nearest: ...`, or nothing where no word is near."""
    near = difflib.get_close_matches(word, sorted(words), 1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""


def override_faults(arguments):
    """Every fault in a command line's overrides that is clear without composing: unknown keys and unknown names in a group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import OverrideParseException

    faults = []
    groups = {*GROUPS, "experiment"}
    for text in arguments:
        try:
            override = OverridesParser.create().parse_override(text)
        except OverrideParseException as error:
            faults.append(f"{text}: not an override of the form key=value ({str(error).splitlines()[0]})")
            continue
        key, value = override.key_or_group, override.value()
        if key == "hydra/launcher" and value in EXTRAS and not importlib.util.find_spec(EXTRAS[value]):
            faults.append(f"{text}: it is an extra that is not installed; pip install -e '.[{value}]'")
        if key.startswith("hydra"):
            continue
        if key == "experiment" and override.is_sweep_override():
            faults.append(f"{text}: each experiment has a grid of its own; run them one after another")
        elif key in groups:
            values = value.list if isinstance(value, ChoiceSweep) else [value]
            faults += [
                f"{key}={v}: no such {key}; choose from {', '.join(choices(key))}{nearest(str(v), choices(key))}"
                for v in values
                if isinstance(v, str) and v not in choices(key)
            ]
        elif key not in known_keys() and not any(known.startswith(f"{key}.") for known in known_keys()):
            faults.append(f"{text}: no such key{nearest(key, known_keys() | groups)}")
    return faults


def run_job(train, cfg):
    """Hydra's task: resolve the config and train. A single run's failure ends in its message and exit code here.

    A run of a sweep returns an Outcome instead (lcm/job.py).
    """
    composed()
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        try:
            config = OmegaConf.to_container(cfg, resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(f"the config does not resolve: {str(error).splitlines()[0]}") from error
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_one(train, config)
        return train(config)
    except Exception as error:
        end(error, debug=cfg.get("debug") is True)


def composed():
    """Note that there is a config now: what goes wrong from here on is no bad input, unless it says so."""
    global _composed
    _composed = True


@contextlib.contextmanager
def unwrapped():
    """Let a UserError out of Hydra's `instantiate`, which wraps every exception in its own."""
    from hydra.errors import InstantiationException

    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        raise cause if isinstance(cause, (UserError, MemoryError)) else error from None


def end(error, debug=False):
    """Print an exception as one message and exit with its code; unknown ones, and all of them with `debug`, with traceback.

    What goes wrong before a config is composed is bad input, whatever Hydra calls it.
    """
    if STOP.at_once and not isinstance(error, Stopped):  # code that a signal's exception left half done
        error = Stopped(STOP.requested)
    expected = isinstance(error, tuple(EXIT_CODES))
    if debug or not expected or os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
    else:
        print(f"error: {error if expected else f'{type(error).__name__}: {error}'}", file=sys.stderr)
    unknown = FAILED if _composed else BAD_INPUT
    sys.exit(next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), unknown))


def make_sweep_known():
    """Let Hydra find this project's sweeper: it takes sweepers only from a package `hydra_plugins`, by their full name."""
    from hydra.core.plugins import Plugins

    from lcm.sweep import Sweep

    Plugins.instance().class_name_to_class["hydra_plugins.lcm.Sweep"] = Sweep


def main(task):
    """Run Hydra's `task` on this process's command line; never returns a traceback for what a user can mend."""
    if not CONFIGS.is_dir():
        sys.exit(f"error: no configs folder at {CONFIGS}: run train.py from a checkout")
    try:
        with STOP.listening():
            overrides = [a for a in sys.argv[1:] if not a.startswith("-") and "=" in a]
            faults = override_faults(overrides)
            if faults:
                raise UserError("\n".join(["nothing was started:", *(f"  {fault}" for fault in faults)]))
            make_sweep_known()
            task()
    except SystemExit as ended:
        if STOP.at_once and ended.code:  # Hydra took the signal's exception for a fault of the config
            end(Stopped(STOP.requested))
        # Hydra ends in 1 when it cannot compose a config; that is bad input
        sys.exit(BAD_INPUT if ended.code == 1 and not _composed else ended.code)
    except (Stopped, Exception) as error:  # Exception: HYDRA_FULL_ERROR=1 makes Hydra raise what it would have printed
        end(error)
