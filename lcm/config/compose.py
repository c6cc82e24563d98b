"""What names stand for: the YAML files of configs/, composed by Hydra.

Configs are plain nested dicts everywhere in this package.
"""

import contextlib
import copy
import functools
import re
import warnings
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lcm.errors import UserError, nearest, one_line
from lcm.files import ROOT

GROUPS = ("data", "model", "attention", "schedule")
# configs/ is beside the package in a checkout, inside it in an installed wheel
IN_CHECKOUT = ROOT / "configs"
CONFIGS = IN_CHECKOUT if IN_CHECKOUT.is_dir() else ROOT / "lcm" / "configs"
FURTHER = ()  # "file://..." or "pkg://...": searched after CONFIGS

# The repository's own modules, networks and data sets, whose tests hold their bits, each with the
# names of its files. Every other target is the user's own.
SHIPPED = {
    "lcm.attention.CBAM": ("cbam",),
    "lcm.attention.CoordinateAttention": ("ca",),
    "lcm.attention.ECA": ("eca",),
    "lcm.attention.GlobalContext": ("gc",),
    "lcm.attention.LCM1": ("lcm1",),
    "lcm.attention.LCM2": ("lcm2",),
    "lcm.attention.NonLocal": ("nonlocal",),
    "lcm.attention.SimAM": ("simam",),
    "lcm.attention.SqueezeExcite": ("se",),
    "lcm.data.Cifar": ("cifar10", "cifar100"),
    "lcm.data.Digits": ("digits",),
    "lcm.data.class_folders": ("folder", "mini_imagenet"),
    "lcm.models.CifarDenseNet": ("densenet40", "densenet64", "densenet100"),
    "lcm.models.CifarResNet": ("resnet20", "resnet32", "resnet50_cifar"),
    "lcm.models.imagenet.densenet121": ("densenet121",),
    "lcm.models.imagenet.resnet50": ("resnet50",),
    "lcm.models.imagenet.resnext50_32x4d": ("resnext50",),
    None: ("none",),  # no attention
}
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)
# Without this line Hydra puts all keys of such a file below `experiment`.
NOT_GLOBAL = "the first line of a file of experiment/ has to be `# @package _global_`"
SETTINGS = "settings"
_options = {}  # composed so far: {(group, choice): its keys, SETTINGS: those beside the groups}


def use_configs(folder, further=()):
    """Read another folder of configs from here on, and `further` places after it."""
    global CONFIGS, FURTHER
    if (Path(folder), tuple(further)) != (CONFIGS, FURTHER):
        CONFIGS = Path(folder)
        FURTHER = tuple(further)
        # The caches answer by name, whatever the folder.
        _options.clear()
        for cached in (choices, _plain):
            cached.cache_clear()


def place_of(folder):
    """A folder of further YAML files as a place that Hydra searches."""
    return f"file://{Path(folder).absolute()}"


def use_config_dir(folder):
    """Read a folder of further YAML files, too, from here on: --config-dir. Returns it."""
    use_configs(CONFIGS, [place_of(folder)])
    return folder


def use_sources(sources):
    """Read the places that a program of Hydra's reads: its `hydra.runtime.config_sources`."""
    (main,) = [source.path for source in sources if source.provider == "main"]
    # Those left out are Hydra's own, which every composition has.
    others = [source for source in sources if source.provider not in ("hydra", "main", "schema")]
    use_configs(main, [f"{source.schema}://{source.path}" for source in others])


@contextlib.contextmanager
def searching():
    """Hydra on the places in use; yields the overrides that name them.

    A program of Hydra's that this one is part of finds its own Hydra unchanged. What cannot be
    composed inside the block is a UserError.
    """
    # what `initialize_config_dir` changes and does not put back: Hydra's version_base, and the
    # instance itself, of which it restores a copy; with one already there it would refuse to start
    instance = GlobalHydra.instance()
    outer = instance.hydra
    version = VersionBase.instance().getbase()
    job = JobRuntime.instance().get("name")
    instance.clear()
    try:
        with (
            initialize_config_dir(str(CONFIGS), job_name=job, version_base="1.3"),
            warnings.catch_warnings(),
        ):
            # Hydra only warns of a missing folder: its choices would be unknown names.
            warnings.filterwarnings("error", message="provider=.* is not available")
            # Without quotes a comma in a path would make two of it.
            quoted = ",".join("'" + place.replace("'", r"\'") + "'" for place in FURTHER)
            yield [f"hydra.searchpath=[{quoted}]"] if FURTHER else []
    except (*COMPOSITION_ERRORS, ValueError) as error:  # a file that is called true.yaml, say
        raise not_composed(error) from error
    finally:
        instance.hydra = outer
        GlobalHydra.set_instance(instance)
        VersionBase.instance().version_base = version


def composed(overrides, config_name="train"):
    """What Hydra composes, interpolations unresolved. UserError where it cannot."""
    with searching() as places:
        return OmegaConf.to_container(compose(config_name, [*places, *overrides]))


def compose_names(names):
    """The unresolved config of {group: choice}; the other groups have their defaults. UserError."""
    config = composed([f"{group}={name}" for group, name in names.items()])
    _options.update({(group, name): config[group] for group, name in names.items()})
    _options[SETTINGS] = {key: value for key, value in config.items() if key not in GROUPS}
    return config


@functools.cache
def choices(group):
    """The names that a config group offers, sorted; those of a folder in it as folder/name."""
    try:
        with searching() as places:
            options = GlobalHydra.instance().config_loader().get_group_options
            names = options(group, overrides=places)
            folders = options(group, ObjectType.GROUP, overrides=places)
    except UserWarning as missing:
        raise UserError(f"--config-dir, hydra.searchpath: {missing}") from missing
    inner = [f"{folder}/{name}" for folder in folders for name in choices(f"{group}/{folder}")]
    return sorted([*names, *inner])


def no_such_option(group, name):
    """The problem of a name that a group does not have, with the names that it has."""
    given = "null" if name is None else name
    known = choices(group)
    return f"{group}={given}: no such {group}; choose from {', '.join(known)}{nearest(name, known)}"


def option(group, name):
    """The file of this name, else one that calls itself so (its key `name`); None without."""
    if name in choices(group):
        return name
    options = load_all(group).items() if isinstance(name, str) else ()
    return next((choice for choice, keys in options if keys.get("name") == name), None)


def load(group, name):
    """One option of a group, unresolved. UserError where there is none of that name."""
    chosen = option(group, name)
    if chosen is None:
        raise UserError(no_such_option(group, name))
    if (group, chosen) not in _options:
        # with any schedule: a data set's own need not be there
        compose_names({"schedule": choices("schedule")[0], group: chosen})
    return copy.deepcopy(_options[group, chosen])


def load_all(group):
    """Every option of a group, {choice: its keys}, in one composition; without broken files."""
    new = [name for name in choices(group) if (group, name) not in _options]
    if new:
        # Each option in a package of its own: one composition for all. A broken file spoils it
        # for the others too; these are then composed one by one below.
        with contextlib.suppress(UserError):
            found = composed([f"+{group}@option{i}={name}" for i, name in enumerate(new)], None)
            _options.update({(group, name): found[f"option{i}"] for i, name in enumerate(new)})
    options = {}
    for name in choices(group):
        with contextlib.suppress(UserError):
            options[name] = load(group, name)
    return {name: keys for name, keys in options.items() if isinstance(keys, dict)}


def settings():
    """What train.yaml has beside the groups: {"seed": 0, "device": "auto", ...}."""
    if SETTINGS not in _options:
        compose_names({"schedule": choices("schedule")[0]})
    return copy.deepcopy(_options[SETTINGS])


def plain(config):
    """The config of the same names without overrides: what deviations are measured against."""
    names = tuple((group, option(group, config[group]["name"])) for group in GROUPS)
    return copy.deepcopy(_plain(names))


@functools.cache
def _plain(names):
    if not _options.keys() >= set(names):
        compose_names(dict(names))  # once for all of them
    config = settings() | {group: copy.deepcopy(_options[group, name]) for group, name in names}
    model, attention = config["model"], config["attention"]
    table = attention.get("paper", {}) | _own_row(model, attention)
    # An attention of the paper on a family without a row: its sizes are the user's to give. In
    # place of None `check` accepts any value.
    if "paper" in attention and model["family"] not in table:
        config["attention"] = {
            key: None if key != "paper" and "${" in str(value) else value
            for key, value in attention.items()
        }
    return resolve(config)


def _own_row(model, attention):
    """The row, {family: sizes}, that a backbone's file adds to an attention's table; {} if none."""
    sizes = (model.get("paper") or {}).get(attention.get("name"))
    return {model["family"]: sizes} if sizes and "paper" in attention else {}


def resolve(config):
    """A composed config as nested dicts, resolved. UserError where that cannot be.

    The sizes that a backbone brings for an attention (`paper` in its file) come before those of the
    attention's file.
    """
    config = config if OmegaConf.is_config(config) else OmegaConf.create(config)
    # The nodes: `config[g]` would resolve an interpolation, and raise outside of the `try`.
    if names := [g for g in GROUPS if g in config and not OmegaConf.is_dict(config._get_node(g))]:
        raise UserError(
            f"{', '.join(names)}: a file of experiment/ chooses it by `defaults: "
            f"[override /{names[0]}: NAME]`; there, `{names[0]}:` holds keys"
        )
    try:
        # A config of Hydra's takes no new keys (struct), unless they are forced.
        for family, sizes in _own_row(config.model, config.attention).items():
            OmegaConf.update(config, f"attention.paper.{family}", sizes, force_add=True)
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key, reason = error.full_key, str(error).splitlines()[0]
        # Only the text tells which interpolation failed: 'paper.FAMILY.KEY' not found.
        if key and key.startswith("attention.") and ".paper." in reason.replace("'", "."):
            model, attention = config.model, config.attention.name
            part = key.partition(".")[2]
            raise UserError(
                f"{key}: attention={attention} has no sizes for networks of the family "
                f"{model.family}: set {key}=... yourself, or put `paper: {{{attention}: "
                f"{{{part}: ...}}}}` into the YAML file of model={model.name}"
            ) from error
        raise UserError(f"the config does not resolve: {key}: {reason}") from error


def read(text):
    """A value that was written as text, as one of a YAML file: "5e-4" -> 0.0005. UserError."""
    try:
        # By OmegaConf's loader: for PyYAML's own, 5e-4 is text, since a float needs a point.
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except COMPOSITION_ERRORS as error:
        raise UserError(f"{text} is not a value: {one_line(error)}") from error


def composition_problem(error):
    """Why Hydra could not compose a config, as one line."""
    if "@experiment." in str(error):
        return NOT_GLOBAL
    if found := re.search(r"Could not find 'schedule/(\S+)'", str(error)):
        return (
            f"there is no schedule {found[1]}: choose one, such as schedule=cifar (without "
            "`schedule=` a data set has the one of its own name)"
        )
    if "is not in struct" in str(error.__cause__):
        return f"{error.__cause__.full_key}: this combination has no such key"
    # Without Hydra's advice: `+key=value` would compose, and the check would refuse the key.
    lines = f"{error}\n{error.__cause__ or ''}".splitlines()
    advice = ("To append", "Config search path", "Available options", "\t")
    reasons = [line.strip(" .") for line in lines if line and not line.startswith(advice)]
    places = [line for line in reasons if line.startswith('in "')]  # of what is wrong in a file
    return ": ".join(dict.fromkeys(reasons[:2] + places))


def not_composed(error):
    """The UserError for a config that Hydra could not compose."""
    return UserError(f"the config cannot be composed: {composition_problem(error)}")


def flatten(config, prefix=""):
    """{"schedule": {"epochs": 2}} -> {"schedule.epochs": 2}; lists and `sites` stay values."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "attention.sites":
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def known_targets(config):
    """A run.json's config, which may come from anybody, with each `_target_` as its file has it.

    Keys that the file lacks go. A schedule's file need not be there: it has the keys of `cifar`.
    Raises UserError where a group's name is not an option of the places in use.
    """
    trusted = copy.deepcopy(config)
    for group in GROUPS:
        name = "cifar" if group == "schedule" else (config.get(group) or {}).get("name")
        try:
            own = load(group, name)
        except UserError as error:
            raise UserError(
                f"{error}; a file in another folder needs --config-dir FOLDER (config_dir=FOLDER)"
            ) from error
        trusted[group] = {key: value for key, value in config[group].items() if key in own}
        # No other name is ever called: the builders do not look for targets inside of values.
        trusted[group] |= {key: own[key] for key in ("_target_", "_convert_") if key in own}
    return trusted
