"""The strict check of a composed config, and what a config says about a run: its identity and its deviations.

Hydra composes YAML and lets `+typo=1` through. Here every key, type and range is checked, and whether model, attention and
data fit together; all faults are listed at once, before anything is loaded or built. Configs are plain nested dicts here.
"""

import copy
import difflib
import functools
import hashlib
import json
import re
from pathlib import Path

import yaml

CONFIGS = next(
    (
        p
        for p in (Path(__file__).resolve().parents[2] / "configs", Path(__file__).resolve().parents[1] / "configs")
        if p.is_dir()
    ),
    Path(__file__).resolve().parents[2] / "configs",
)

GROUPS = ("data", "model", "attention", "schedule")

# Keys that cannot change a number: paths, the machine, what is shown.
NOT_IDENTITY = (
    "device", "threads", "allocator", "capture", "runs", "run_directory", "checkpoint", "tensorboard", "progress", "debug",
    "data.root", "data.workers", "data.verify", "data.download", "data.places", "data.cache_dir",
)  # fmt: skip
# Keys that may change rounding, but not what is computed: part of a run's identity, no deviation from the protocol.
ROUNDING_ONLY = (
    "seed", "precision", "compile", "deterministic", "channels_last", "fold_batch_norm",
    "model.memory", "schedule.test_batch_size",
)  # fmt: skip

# The width of the sites of each stage (structure.md): the smallest a reduction has to fit into.
SITE_WIDTHS = {
    "cifar_resnet": (16, 32, 64),
    "densenet121": (32, 32, 32, 32),
    "resnet50": (256, 512, 1024, 2048),
    "resnext50": (256, 512, 1024, 2048),
}


def number(kind, low=None, high=None, above=None, below=None):
    """A rule: an int or float (never a bool) in a range; returns the fault's words or None."""
    words = "a whole number" if kind is int else "a number"
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", low), ("<=", high), (">", above), ("<", below))
        if bound is not None
    ]
    expected = " ".join([words, " and ".join(bounds)]).strip()

    def rule(value):
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        fits = fits and value == value and value not in (float("inf"), float("-inf"))
        fits = fits and (low is None or value >= low) and (high is None or value <= high)
        fits = fits and (above is None or value > above) and (below is None or value < below)
        return None if fits else expected

    return rule


def one_of(*choices):
    """A rule: one of the named values."""
    words = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]

    def rule(value):
        if any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
            return None
        near = difflib.get_close_matches(str(value), words, 1)
        return (
            " or ".join(words)
            if len(words) < 3
            else f"one of {', '.join(words)}" + (f" (nearest: {near[0]})" if near else "")
        )

    return rule


def matching(pattern, expected):
    """A rule: a string that matches."""
    return lambda value: None if isinstance(value, str) and re.fullmatch(pattern, value) else expected


def either(*rules):
    """A rule: any of several rules holds."""

    def rule(value):
        faults = [r(value) for r in rules]
        return None if None in faults else " or ".join(faults)

    return rule


def shares(value):
    """A rule: rising shares of the epochs, each in (0, 1)."""
    fits = isinstance(value, list) and all(number(float, above=0, below=1)(v) is None for v in value)
    return None if fits and value == sorted(set(value)) else "a rising list of shares of the epochs between 0 and 1"


def site_choice(value):
    """A rule: which sites are filled."""
    if value == "every":
        return None
    if isinstance(value, dict) and len(value) == 1:
        key, stages = next(iter(value.items()))
        if (
            key == "stages"
            and isinstance(stages, list)
            and stages
            and all(number(int, low=1)(s) is None for s in stages)
        ):
            return None
        if key == "last_of_stage" and number(int, low=1)(stages) is None:
            return None
    return "every, {stages: [2, 3]} or {last_of_stage: 2}"


def path(value):
    """A rule: a path that is not empty."""
    return None if isinstance(value, str) and value.strip() else "a path"


switch = one_of(True, False)
anything = lambda value: None  # noqa: E731  a rule for what a loader checks itself

RULES = {
    "seed": number(int, low=0, below=2**31),
    "device": matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:0"),
    "precision": one_of("fp32", "tf32", "bf16"),
    "compile": switch,
    "deterministic": switch,
    "channels_last": switch,
    "capture": switch,
    "fold_batch_norm": switch,
    "allocator": switch,
    "threads": either(one_of("auto"), number(int, low=1, high=1024)),
    "runs": path,
    "run_directory": either(one_of(None), path),
    "checkpoint.every": matching(
        r"epoch|[1-9]\d* steps?|[1-9]\d*(\.\d+)? minutes?", 'epoch, "500 steps" or "10 minutes"'
    ),
    "tensorboard": switch,
    "progress": one_of("auto", "bar", "lines"),
    "debug": switch,
    "schedule.epochs": number(int, low=1),
    "schedule.batch_size": number(int, low=2),
    "schedule.learning_rate": number(float, above=0),
    "schedule.divide_at": shares,
    "schedule.divide_by": number(float, low=1),
    "schedule.momentum": number(float, low=0, below=1),
    "schedule.nesterov": switch,
    "schedule.weight_decay": number(float, low=0),
    "schedule.test_batch_size": number(int, low=1),
    "data.root": either(one_of(None), path),
    "data.workers": number(int, low=0),
    "data.pad": number(int, low=0, high=16),
    "model.layers": number(int, low=8),
    "model.growth_rate": number(int, low=1),
    "model.memory": one_of("fast", "linear"),
    "attention.reduction": number(int, low=1),
    "attention.sites": site_choice,
}


@functools.cache
def choices(group):
    """The names that a config group offers, sorted."""
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


@functools.cache
def _read(file):
    return yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())


def load(group, name):
    """The YAML of one option of a group as a plain dict, interpolations unresolved."""
    return copy.deepcopy(_read(f"{group}/{name}"))


def defaults():
    """The options that train.yaml takes where a command line names none: {"data": "digits", ...}."""
    entries = [entry for entry in _read("train")["defaults"] if isinstance(entry, dict)]
    return {group: name for entry in entries for group, name in entry.items()}


def plain(config):
    """The composition that the names in `config` stand for, without any override: what deviations are measured against."""
    return copy.deepcopy(_plain(*(config[group]["name"] for group in GROUPS)))


@functools.cache
def _plain(*names):
    from omegaconf import OmegaConf

    base = {k: v for k, v in _read("train").items() if k not in ("defaults", "hydra")}
    base |= {group: load(group, name) for group, name in zip(GROUPS, names, strict=True)}
    return OmegaConf.to_container(OmegaConf.create(base), resolve=True)


def use_configs(folder):
    """Check against another folder of configs from here on."""
    global CONFIGS
    CONFIGS = Path(folder)
    for cached in (choices, _read, _plain):
        cached.cache_clear()


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


def is_under(key, names):
    """Whether a flat key is one of `names` or lies below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def identity(config):
    """Everything in a resolved config that can change the numbers, flat: {"seed": 0, "schedule.epochs": 300, ...}."""
    return {
        key: value
        for key, value in sorted(flatten(config).items())
        if not is_under(key, (*NOT_IDENTITY, "attention.paper")) and not key.endswith(("_target_", "_convert_"))
    }


def config_hash(config):
    """SHA-256 of a config's identity, in hex."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def deviations(config):
    """The keys, with their values, in which a config differs from the protocol that its names stand for."""
    expected = identity(plain(config))
    return {
        key: value
        for key, value in identity(config).items()
        if not is_under(key, ROUNDING_ONLY) and (key not in expected or expected[key] != value)
    }


def same_kind(value, default):
    """Whether a value that has no rule of its own has its default's type; a null default takes anything."""
    if default is None or isinstance(default, (list, dict)):
        return default is None or isinstance(value, type(default))
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def check(config):
    """Every fault of a composed, resolved config (nested dicts), each as one line; an empty list where there is none."""
    faults = []
    for group in GROUPS:
        section = config.get(group)
        name = section.get("name") if isinstance(section, dict) else None
        if name not in choices(group):
            near = difflib.get_close_matches(str(name), choices(group), 1)
            hint = f"; nearest: {near[0]}" if near else ""
            faults.append(f"{group}={name}: no such {group}; choose from {', '.join(choices(group))}{hint}")
    if faults:
        return faults

    flat, expected = flatten(config), flatten(plain(config))
    known = set(expected) | {k for k in RULES if "." not in k}
    for key, value in flat.items():
        if key not in known:
            group, _, rest = key.partition(".")
            below = [name for name in expected if name.startswith(f"{key}.")]
            if below:
                faults.append(f"{key}={json.dumps(value)}: it holds other keys; set {below[0]}")
            elif group in GROUPS and any(rest in load(group, name) for name in choices(group)):
                faults.append(f"{key}: {group}={config[group]['name']} has no {rest}")
            else:
                near = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.5)
                faults.append(f"{key}: no such key" + (f"; nearest: {near[0]}" if near else ""))
            continue
        rule = RULES.get(key)
        if key in ("model.name", "data.name", "attention.name", "schedule.name"):
            continue
        if key.endswith("._target_") or key in (
            "model.family",
            "model.image_size",
            "data.image_size",
            "data.num_classes",
        ):
            fault = (
                None
                if value == expected.get(key)
                else f"{expected.get(key)} (a fact of {key.split('.')[0]}, not a choice)"
            )
        elif rule:
            fault = rule(value)
        else:
            fault = None if same_kind(value, expected.get(key)) else f"of the kind of {expected.get(key)!r}"
        if fault:
            faults.append(f"{key}={json.dumps(value)}: must be {fault}")
    faults += [
        f"{key}: missing from the config"
        for key in expected
        if key not in flat and not any(key.startswith(f"{name}.") for name in flat)
    ]
    return faults or _misfits(config)


def _misfits(config):
    """Faults of a combination whose parts are fine by themselves."""
    faults = []
    model, data, attention = config["model"], config["data"], config["attention"]
    if model["image_size"] != data["image_size"]:
        models = [m for m in choices("model") if load("model", m)["image_size"] == data["image_size"]]
        sets = [d for d in choices("data") if load("data", d)["image_size"] == model["image_size"]]
        kin = [m for m in models if m.startswith(model["name"]) or model["name"].startswith(m)]
        near = difflib.get_close_matches(model["name"], kin or models, 1, cutoff=0)
        faults.append(
            f"model={model['name']} is for {model['image_size']}x{model['image_size']} images, data={data['name']} has "
            f"{data['image_size']}x{data['image_size']}: take model={near[0]}, or data={', '.join(sets)}"
        )
    if model["family"] == "cifar_resnet" and (model["layers"] - 2) % 6:
        below = (model["layers"] - 2) // 6 * 6 + 2
        faults.append(f"model.layers={model['layers']}: must be 6n + 2; nearest: {max(8, below)} or {below + 6}")
    if model["family"] == "cifar_densenet" and (model["layers"] - 4) % 3:
        below = (model["layers"] - 4) // 3 * 3 + 4
        faults.append(f"model.layers={model['layers']}: must be 3n + 4; nearest: {max(7, below)} or {below + 3}")
    widths = (model["growth_rate"],) * 3 if model["family"] == "cifar_densenet" else SITE_WIDTHS[model["family"]]
    sites = attention.get("sites", "every")
    stages = range(1, len(widths) + 1)
    if isinstance(sites, dict):
        stages = sites["stages"] if "stages" in sites else [sites["last_of_stage"]]
        missing = [s for s in stages if s > len(widths)]
        if missing:
            faults.append(f"attention.sites: model={model['name']} has stages 1 to {len(widths)}, not {missing[0]}")
            return faults
    narrowest, reduction = min(widths[s - 1] for s in stages), attention.get("reduction")
    if reduction and reduction > narrowest:
        faults.append(
            f"attention.reduction={reduction}: larger than the {narrowest} channels of the narrowest site of "
            f"model={model['name']}; take at most {narrowest}"
        )
    if model.get("memory") == "linear" and model["family"] != "cifar_densenet":
        faults.append(
            f"model.memory=linear: only the CIFAR DenseNets have it, not model={model['name']}; take memory=fast"
        )
    return faults
