"""The one check of a config: every key, type and range, and whether model, attention and data fit together.

Hydra composes YAML and lets `+typo=1` through. Here all problems are found at once, before anything is loaded or built;
whether a reduction fits the sites of a network is checked by `lcm.runs.grid.problems`, which can ask the network.
"""

import difflib
import json
import math
import re

from lcm.config.options import GROUPS, choices, flatten, load, no_such_option, plain
from lcm.errors import nearest


def number(kind, low=-math.inf, high=math.inf, above=-math.inf, below=math.inf):
    """A rule: an int or float (never a bool) in a range; returns what is expected, or None where the value fits."""
    bounds = [(">=", low), ("<=", high), (">", above), ("<", below)]
    bounds = " and ".join(f"{sign} {bound}" for sign, bound in bounds if abs(bound) < math.inf)
    expected = f"{'a whole number' if kind is int else 'a number'} {bounds}".strip()

    def rule(value):
        fits = (
            type(value) in (int, kind)
            and abs(value) < math.inf
            and low <= value <= high
            and above < value < below
        )
        return None if fits else expected

    return rule


def one_of(*choices):
    """A rule: one of the named values."""
    words = [choice if isinstance(choice, str) else json.dumps(choice) for choice in choices]

    def rule(value):
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        return (
            " or ".join(words)
            if len(words) < 3
            else f"one of {', '.join(words)}{nearest(value, words)}"
        )

    return rule


def matching(pattern, expected):
    """A rule: a string that matches."""
    return lambda value: (
        None if isinstance(value, str) and re.fullmatch(pattern, value) else expected
    )


def either(*rules):
    """A rule: any of several rules holds."""

    def rule(value):
        expected = [fits(value) for fits in rules]
        return None if None in expected else " or ".join(expected)

    return rule


def shares(value):
    """A rule: rising shares of the epochs, each in (0, 1)."""
    fits = isinstance(value, list) and all(
        number(float, above=0, below=1)(v) is None for v in value
    )
    return (
        None
        if fits and value == sorted(set(value))
        else "a rising list of shares of the epochs between 0 and 1"
    )


def site_choice(value):
    """A rule: which sites are filled."""
    match value:
        case "every":
            return None
        case {"stages": [_, *_] as stages} | {"last_of_stage": int() as stages} if len(value) == 1:
            stages = stages if isinstance(stages, list) else [stages]
            if all(number(int, low=1)(stage) is None for stage in stages):
                return None
    return "every, {stages: [2, 3]} or {last_of_stage: 2}"


def path(value):
    """A rule: a path that is not empty."""
    return None if isinstance(value, str) and value.strip() else "a path"


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
    "threads": either(one_of("auto"), number(int, low=1, high=1024)),
    "runs": path,
    "run_directory": either(one_of(None), path),
    "rerun": switch,
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
    "data.cache_size": either(one_of(None), number(int, low=1)),
    "model.layers": number(int, low=8),
    "model.growth_rate": number(int, low=1),
    "model.memory": one_of("fast", "linear"),
    "attention.reduction": number(int, low=1),
    "attention.sites": site_choice,
}

FACTS = (
    "model.family",
    "model.image_size",
    "data.image_size",
    "data.num_classes",
)  # of a choice, not choices


def check(config):
    """Every problem of a composed, resolved config (nested dicts), a line each; an empty list where there is none."""
    names = {
        group: (config.get(group) if isinstance(config.get(group), dict) else {}).get("name")
        for group in GROUPS
    }
    problems = [
        no_such_option(group, name) for group, name in names.items() if name not in choices(group)
    ]
    if problems:
        return problems
    flat, expected = flatten(config), flatten(plain(config))
    for key, value in flat.items():
        if key not in expected:
            problems.append(f"{key}: no such key for these choices{nearest(key, expected)}")
        elif problem := _value_problem(key, value, expected[key]):
            problems.append(f"{key}={json.dumps(value)}: must be {problem}")
    problems += [f"{key}: missing from the config" for key in expected if key not in flat]
    return problems or _combination_problems(config)


def _value_problem(key, value, default):
    """What the value of a known key must be; None where it fits."""
    if key.endswith("._target_") or key in FACTS:
        return (
            None
            if value == default
            else f"{default} (a fact of {key.partition('.')[0]}, not a choice)"
        )
    if key in RULES:
        return RULES[key](value)
    fits = (
        default is None
        or type(value) is type(default)
        or (type(default), type(value)) == (float, int)
    )
    return None if fits else f"of the same type as {default!r}"


def _combination_problems(config):
    """Problems of a combination whose parts are fine by themselves."""
    problems = []
    model, data = config["model"], config["data"]
    if model["image_size"] != data["image_size"]:
        models = [
            name
            for name in choices("model")
            if load("model", name)["image_size"] == data["image_size"]
        ]
        sets = [
            name
            for name in choices("data")
            if load("data", name)["image_size"] == model["image_size"]
        ]
        related = [
            name
            for name in models
            if name.startswith(model["name"]) or model["name"].startswith(name)
        ]
        near = difflib.get_close_matches(model["name"], related or models, 1, cutoff=0)
        problems.append(
            f"model={model['name']} is for {model['image_size']}x{model['image_size']} images, data={data['name']} has "
            f"{data['image_size']}x{data['image_size']}: take model={near[0]}, or data={', '.join(sets)}"
        )
    for family, step, extra, smallest in (("cifar_resnet", 6, 2, 8), ("cifar_densenet", 3, 4, 7)):
        if model["family"] == family and (model["layers"] - extra) % step:
            below = (model["layers"] - extra) // step * step + extra
            problems.append(
                f"model.layers={model['layers']}: must be {step}n + {extra}; nearest: {max(smallest, below)} or {below + step}"
            )
    return problems
