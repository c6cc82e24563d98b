"""The one check of a config: keys, types, ranges, and whether model, attention and data fit.

Hydra composes YAML and lets `+typo=1` through. Here all problems are found at once, before anything
is loaded or built; whether a depth or a reduction fits a network is checked by
`lcm.runs.grid.problems`, which can ask the network.
"""

import json
import math
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from lcm.config.compose import (
    GROUPS,
    NOT_GLOBAL,
    choices,
    flatten,
    load,
    load_all,
    no_such_option,
    option,
    plain,
    read,
)
from lcm.errors import UserError, nearest


class Rule(NamedTuple):
    """What a value may be. kind: the type that it is read as, where it is a number, or text."""

    fits: Callable
    expected: str
    kind: type | None = None


def number(kind, low=-math.inf, high=math.inf, above=-math.inf, below=math.inf):
    """An int or float (never a bool) in a range."""
    ends = {">=": low, "<=": high, ">": above, "<": below}
    bounds = " and ".join(f"{s} {end}" for s, end in ends.items() if abs(end) < math.inf)

    def fits(value):
        # By `type`, since True is an int. The largest float excludes NaN, infinities and whole
        # numbers that no float can hold.
        return (
            type(value) in (int, kind)
            and (kind is int or abs(value) <= sys.float_info.max)
            and low <= value <= high
            and above < value < below
        )

    return Rule(fits, f"{'a whole number' if kind is int else 'a number'} {bounds}".strip(), kind)


def one_of(*choices):
    """One of the named values; `1` is not `true`."""
    words = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]
    known = [(type(choice), choice) for choice in choices]
    return Rule(lambda value: (type(value), value) in known, " or ".join(words))


def matching(pattern, expected):
    """A string that matches."""
    return Rule(
        lambda value: isinstance(value, str) and re.fullmatch(pattern, value), expected, str
    )


def either(choice, numbers):
    """A value of its own, or a number."""
    other = one_of(choice)
    return Rule(
        lambda value: other.fits(value) or numbers.fits(value),
        f"{other.expected} or {numbers.expected}",
        numbers.kind,
    )


def list_of(numbers, fits, expected):
    """A list of numbers that fits as a whole."""
    return Rule(
        lambda value: isinstance(value, list) and all(map(numbers.fits, value)) and fits(value),
        expected,
        numbers.kind,
    )


path = matching(r"(?s).*\S.*", "a path")
switch = one_of(True, False)

RULES = {
    "seed": number(int, low=0, below=2**31),
    "device": matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:0"),
    "precision": one_of("fp32", "tf32", "bf16"),
    "compile": switch,
    "deterministic": switch,
    "channels_last": switch,
    "capture": switch,
    "allocator": switch,
    "threads": either("auto", number(int, low=1, high=1024)),
    **dict.fromkeys(
        ("runs", "run_directory"),
        matching(r"(?s)(?!~).*\S.*", "a path, its home folder written out"),
    ),
    "rerun": switch,
    "checkpoint.every": matching(
        r"epoch|[1-9]\d* steps?|[1-9]\d*(\.\d+)? minutes?", 'epoch, "500 steps" or "10 minutes"'
    ),
    "tensorboard": switch,
    "progress": one_of("auto", "bar", "lines"),
    "debug": switch,
    "schedule.epochs": number(int, low=1, high=10**6),
    "schedule.batch_size": number(int, low=2),
    "schedule.learning_rate": number(float, above=0),
    "schedule.decay": one_of("steps", "cosine"),
    "schedule.divide_at": list_of(
        number(float, above=0, below=1),
        lambda shares: shares == sorted(set(shares)),
        "a rising list of fractions of the epochs, each between 0 and 1",
    ),
    "schedule.divide_by": number(float, low=1),
    "schedule.warm_up": number(int, low=0),
    "schedule.label_smoothing": number(float, low=0, below=1),
    "schedule.optimizer": one_of("sgd", "adamw"),
    "schedule.momentum": number(float, low=0, below=1),
    "schedule.nesterov": switch,
    "schedule.betas": list_of(
        number(float, low=0, below=1),
        lambda rates: len(rates) == 2,
        "two numbers >= 0 and < 1, such as [0.9, 0.999]",
    ),
    "schedule.eps": number(float, above=0),
    "schedule.weight_decay": number(float, low=0),
    "schedule.test_batch_size": number(int, low=1),
    "data.root": path,
    "data.cache_dir": path,
    "data.image_size": number(int, low=1),
    "data.num_classes": number(int, low=1),
    **dict.fromkeys(  # they are in paths, and the records refuse others
        ("data.label", *(f"{group}.name" for group in GROUPS)),
        matching(
            r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
            "1 to 64 letters, digits, _, . and -, the first a letter or digit",
        ),
    ),
    "data.test_share": number(float, above=0, below=1),
    "data.workers": number(int, low=0, high=1024),
    "data.pad": number(int, low=0, high=16),
    "data.cache_size": either(None, number(int, low=1)),
    "model.image_size": number(int, low=1),
    "model.layers": number(int, low=1, high=10**4),
    "model.growth_rate": number(int, low=1),
    "model.memory": one_of("fast", "linear"),
    "attention.reduction": number(int, low=1),
    "attention.sites": Rule(lambda value: True, "checked with the network"),
}

# Arguments of the repository's own classes, which may mean something else to one's own class.
ARGUMENTS = (
    *("model.layers", "model.growth_rate", "model.memory", "attention.reduction"),
    *("data.test_share", "data.workers", "data.pad", "data.cache_size"),
)

# of a choice, not choices
FACTS = ("model.family", "model.image_size", "data.image_size", "data.num_classes")

# Keys of a schedule that change nothing where another has this value. Accepted, they would give
# the same numbers another hash.
IDLE = {
    ("optimizer", "sgd"): ("betas", "eps"),
    ("optimizer", "adamw"): ("momentum", "nesterov"),
    ("decay", "cosine"): ("divide_at", "divide_by"),
    ("momentum", 0): ("nesterov",),
}

# What the file of an option has: without a target nothing would be built, and nothing said.
NEEDED = {
    "data": ("_target_", "image_size", "num_classes"),
    "model": ("_target_", "family", "image_size"),
    "attention": ("_target_",),
    "schedule": [key.partition(".")[2] for key in RULES if key.startswith("schedule.")],
}


def rule_of(key, default):
    """The rule of a key, None without one; `default`: its value in the YAML file."""
    rule = RULES.get(key)
    # A file of one's own may have layers: [3, 4, 6, 3], reduction: 0.25 or reduction: auto. Text
    # may be a number that the environment gives.
    fits = default is None or (rule and (rule.fits(default) or rule.fits(as_value(default))))
    return None if key in ARGUMENTS and not fits else rule


def as_value(text):
    """A word as the number or switch that it stands for; anything else as it is."""
    # A word alone: `read` makes a list of "[1]", and a dict of "{a: 1}". Not "010", which YAML
    # reads as octal.
    word = isinstance(text, str) and re.fullmatch(r"(?![+-]?0\d)[\w.+-]+", text)
    return read(text) if word else text


def typed(config):
    """A resolved config with every number of its declared type: that of its rule, else of its value
    in the YAML file. Text, as the environment gives it, becomes a number too.
    """
    try:
        defaults = flatten(plain(config))
    except (UserError, LookupError, TypeError, AttributeError):
        return config  # `check` has the words for it

    def of(key, value):
        if isinstance(value, dict):
            return {name: of(f"{key}.{name}".strip("."), item) for name, item in value.items()}
        if isinstance(value, list):
            return [of(key, item) for item in value]
        default = defaults.get(key)
        rule = rule_of(key, default)
        kind = (rule.kind if rule else None) or type(default)
        value = as_value(value) if kind in (int, float, bool) else value
        # `float` raises for longer ones, which `check` refuses in words.
        whole = type(value) is int and abs(value) <= sys.float_info.max
        return float(value) if kind is float and whole else value

    return of("", config)


def check(config):
    """Every problem of a composed, resolved config (nested dicts), a line each; an empty list where
    there is none.
    """
    if "experiment" in config:
        return [NOT_GLOBAL]
    names = {
        group: (config.get(group) if isinstance(config.get(group), dict) else {}).get("name")
        for group in GROUPS
    }
    problems = [
        no_such_option(group, name)
        + ("; the key `name` of its file is missing" if name is None else "")
        for group, name in names.items()
        if not option(group, name)
    ]
    # Without the files of its names nothing says which keys it should have.
    if problems:
        return problems
    flat, expected = flatten(config), flatten(typed(plain(config)))
    declared = {f"schedule.{key}" for key in load("schedule", "cifar")}
    for key in [key for key in expected if key.startswith("schedule.") and key not in declared]:
        del expected[key]  # a word of a schedule of one's own, which train.py does not read
    # Facts cannot be overridden: they are compared with the file's value. One that the file leaves
    # open, as num_classes of data=folder, is the user's to say.
    facts = {key for key in FACTS if expected.get(key) is not None}
    # Its file has the network's size; where the user names another, the comparison of the two
    # has the better words.
    if _sized_by_network(names["data"]):
        facts.discard("data.image_size")
    for key, value in flat.items():
        if key not in expected:
            problems.append(f"{key}: no such key for these choices{nearest(key, expected)}")
        elif ".paper." in key and value != expected[key]:
            problems.append(f"{key}: a size of the paper's; set attention.{key.split('.')[3]}")
        elif problem := _value_problem(key, value, expected[key], key in facts):
            problems.append(f"{key}={json.dumps(value)}: must be {problem}")
    problems += [f"{key}: missing from the config" for key in expected if key not in flat]
    # A network is for images of one size; a data set's number of classes may be null.
    stated = {key for key in expected if (key, expected[key]) != ("model.image_size", None)}
    for group, needed in NEEDED.items():
        lacking = [key for key in needed if f"{group}.{key}" not in stated]
        if lacking and names[group] != "none":  # no attention
            problems.append(
                f"the file of {group}={names[group]} has no {', '.join(lacking)}; "
                "docs/extending.md has an example"
            )
    return problems or _combination_problems(config, expected)


def _sized_by_network(data):
    """Whether a data set resizes its images to what the network takes, as data=folder does."""
    return "${" in str(load("data", data).get("image_size"))


def _value_problem(key, value, default, is_fact):
    """What the value of a known key must be; None where it fits."""
    if key.endswith("._target_") or is_fact:
        fact = f"{default} (fixed by the choice of {key.partition('.')[0]})"
        return None if value == default else fact
    # Most rules know no null: it is allowed where the file has it, and nowhere else.
    if value is None and default is None:
        return None
    if rule := rule_of(key, default):
        if rule.fits(value):
            return None
        number = rule.kind is str and type(value) in (int, float)
        hint = f"; this is read as a number, and needs quotes: {key}=\"'TEXT'\""
        return rule.expected + (hint if number else "")
    if default is None or type(value) is type(default):
        return None
    return "a list" if isinstance(default, list) else f"of the same type as {default!r}"


def _combination_problems(config, expected):
    """Problems of a combination whose parts are fine by themselves; `expected`: the files' keys."""
    problems = []
    data, model, attention, schedule = (config[group] for group in GROUPS)
    if model["image_size"] != data["image_size"]:
        problems.append(_size_problem(model, data))
    if (label := data.get("label")) in choices("data"):
        problems.append(f"data.label={label}: there is a data set of this name; take another")
    problems += [
        f"schedule.{key}={json.dumps(schedule[key])}: has no effect with schedule.{choice}={chosen}"
        for (choice, chosen), idle in IDLE.items()
        for key in idle
        if schedule[choice] == chosen and schedule[key] != expected[f"schedule.{key}"]
    ]
    if attention["name"] in (model.get("paper") or {}) and "paper" not in attention:
        problems.append(
            f"the file of model={model['name']} has sizes for {attention['name']} (paper), which "
            "only the paper's attentions read: give them as attention.KEY=VALUE"
        )
    if schedule["warm_up"] >= schedule["epochs"]:
        problems.append(
            f"schedule.warm_up={schedule['warm_up']}: must be smaller than "
            f"schedule.epochs={schedule['epochs']}"
        )
    return problems


def _size_problem(model, data):
    """The problem of a network and images of another size, with what would fit either."""
    size, other = model["image_size"], data["image_size"]
    fits = {"model": _of_size("model", other), "data": _of_size("data", size)}
    if _sized_by_network(data["name"]):
        fits = {"model": fits["model"], "data.image_size": [str(size)]}
    advice = [f"{key}={', '.join(names)}" for key, names in fits.items() if names]
    return (
        f"model={model['name']} is for {size}x{size} images, data={data['name']} has "
        f"{other}x{other}: take {', or '.join(advice) or 'files of one size'}"
    )


def _of_size(group, size):
    """The options of a group for images of this size."""
    return [name for name, keys in load_all(group).items() if keys.get("image_size") == size]
