"""The one check of a config: every key, type and range, and whether model, attention and data fit
together.

Hydra composes YAML and lets `+typo=1` through. Here all problems are found at once, before anything
is loaded or built; whether a reduction fits the sites of a network is checked by
`lcm.runs.grid.problems`, which can ask the network.
"""

import difflib
import json
import math
import re
import sys

from lcm.config.compose import (
    GROUPS,
    flatten,
    load,
    load_all,
    no_such_option,
    option,
    plain,
    read,
)
from lcm.errors import UserError, nearest


def number(kind, low=-math.inf, high=math.inf, above=-math.inf, below=math.inf):
    """A rule: an int or float (never a bool) in a range; returns what is expected, or None where
    the value fits.
    """
    bounds = [(">=", low), ("<=", high), (">", above), ("<", below)]
    bounds = " and ".join(f"{sign} {bound}" for sign, bound in bounds if abs(bound) < math.inf)
    expected = f"{'a whole number' if kind is int else 'a number'} {bounds}".strip()

    def rule(value):
        fits = (
            type(value) in (int, kind)
            and (kind is int or abs(value) <= sys.float_info.max)
            and low <= value <= high
            and above < value < below
        )
        return None if fits else expected

    rule.kind = kind
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

    rule.kind = next((fits.kind for fits in rules if hasattr(fits, "kind")), None)
    return rule


def shares(value):
    """A rule: rising shares of the epochs, each in (0, 1)."""
    share = number(float, above=0, below=1)
    fits = isinstance(value, list) and not any(map(share, value)) and value == sorted(set(value))
    return None if fits else "a rising list of shares of the epochs between 0 and 1"


def betas(value):
    """A rule: AdamW's two decay rates."""
    rate = number(float, low=0, below=1)
    fits = isinstance(value, list) and len(value) == 2 and not any(map(rate, value))
    return None if fits else "two numbers >= 0 and < 1, such as [0.9, 0.999]"


shares.kind = betas.kind = float


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
    "threads": either(one_of("auto"), number(int, low=1, high=1024)),
    "runs": path,
    "run_directory": path,
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
    "schedule.decay": one_of("steps", "cosine"),
    "schedule.divide_at": shares,
    "schedule.divide_by": number(float, low=1),
    "schedule.warm_up": number(int, low=0),
    "schedule.label_smoothing": number(float, low=0, below=1),
    "schedule.optimizer": one_of("sgd", "adamw"),
    "schedule.momentum": number(float, low=0, below=1),
    "schedule.nesterov": switch,
    "schedule.betas": betas,
    "schedule.eps": number(float, above=0),
    "schedule.weight_decay": number(float, low=0),
    "schedule.test_batch_size": number(int, low=1),
    "data.root": path,
    "data.cache_dir": path,
    "data.label": matching(r"\w[\w.-]*", "a word of letters, digits, _, . and -"),
    "data.test_share": number(float, above=0, below=1),
    "data.limit": number(int, low=1),
    "data.workers": number(int, low=0),
    "data.pad": number(int, low=0, high=16),
    "data.cache_size": either(one_of(None), number(int, low=1)),
    "model.layers": number(int, low=1),
    "model.growth_rate": number(int, low=1),
    "model.memory": one_of("fast", "linear"),
    "attention.reduction": number(int, low=1),
    "attention.sites": site_choice,
}

# of a choice, not choices
FACTS = ("model.family", "model.image_size", "data.image_size", "data.num_classes")

# Words of other recipes, which somebody may look for here.
RECIPE = re.compile(
    r"cut_?out|cut_?mix|mix_?up|ema|swa|.*aug(ment\w*)?|erasing|.*clip\w*|(lr_)?scheduler|"
    r"(drop_?)?path|cosine|adamw?|lion|lamb|lars|rmsprop|sam|lookahead|ls|smoothing|warm_?restarts?"
)
WHAT_THERE_IS = (
    "; there are decay, warm_up, label_smoothing, optimizer and weight_decay of the schedule, "
    "pad and mirror of the data; anything else is written into the training step in train.py"
)


def no_such_key(key, known):
    """What follows "no such key": the nearest one, or what there is of training recipes."""
    if RECIPE.fullmatch(key.rpartition(".")[2].lower()):
        return WHAT_THERE_IS
    same_end = [other for other in sorted(known) if other.endswith(f".{key}")]
    return f"; nearest: {same_end[0]}" if same_end else nearest(key, known)


def typed(config):
    """A resolved config with every value of its declared type: that of its rule, else of its value
    in the YAML file.

    A whole number becomes a float where floats are meant, in lists too, and text, as the
    environment gives it, a number.
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
        kinds = {type(item) for item in (default if isinstance(default, list) else [default])}
        declared = next((kind for kind in (float, int, bool) if kind in kinds), None)
        kind = getattr(RULES.get(key), "kind", declared)
        if kind and isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value):
            value = read(value)
        exact = kind is float and type(value) is int and abs(value) <= sys.float_info.max
        return float(value) if exact else value

    return of("", config)


def check(config):
    """Every problem of a composed, resolved config (nested dicts), a line each; an empty list where
    there is none.
    """
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
    if problems:
        return problems
    flat, expected = flatten(config), flatten(plain(config))
    declared = {f"schedule.{key}" for key in load("schedule", "cifar")}
    for key in [key for key in expected if key.startswith("schedule.") and key not in declared]:
        del expected[key]  # a word of a schedule of one's own, which train.py does not read
    for key, value in flat.items():
        if key not in expected:
            problems.append(f"{key}: no such key for these choices{no_such_key(key, expected)}")
        elif problem := _value_problem(key, value, expected[key]):
            problems.append(f"{key}={json.dumps(value)}: must be {problem}")
    problems += [f"{key}: missing from the config" for key in expected if key not in flat]
    if lacking := sorted(declared - expected.keys()):
        problems.append(
            f"schedule={names['schedule']} has no {', '.join(lacking)}; "
            "`defaults: [cifar]` in its file brings the paper's"
        )
    return problems or _combination_problems(config)


def _value_problem(key, value, default):
    """What the value of a known key must be; None where it fits."""
    if key.endswith("._target_") or (key in FACTS and default is not None):
        fact = f"{default} (a fact of {key.partition('.')[0]}, not a choice)"
        return None if value == default else fact
    if value is None and default is None:
        return None
    if key in RULES:
        return RULES[key](value)
    if default is None or type(value) is type(default):
        return None
    return "a list" if isinstance(default, list) else f"of the same type as {default!r}"


def _combination_problems(config):
    """Problems of a combination whose parts are fine by themselves."""
    problems = []
    model, data, schedule = config["model"], config["data"], config["schedule"]
    if model["image_size"] != data["image_size"]:
        problems.append(_size_problem(model, data))
    for family, step, extra, smallest in (("cifar_resnet", 6, 2, 8), ("cifar_densenet", 3, 4, 7)):
        layers = model.get("layers")
        if model["family"] == family and (layers < smallest or (layers - extra) % step):
            below = max(smallest, (layers - extra) // step * step + extra)
            near = f"{below} or {below + step}" if layers > below else f"{below}"
            problems.append(f"model.layers={layers}: must be {step}n + {extra}; nearest: {near}")
    if schedule["warm_up"] >= schedule["epochs"]:
        problems.append(
            f"schedule.warm_up={schedule['warm_up']}: must be smaller than "
            f"schedule.epochs={schedule['epochs']}"
        )
    return problems


def _size_problem(model, data):
    """The problem of a network and a data set whose images differ in size, with what fits either of
    them.
    """
    name = model["name"]
    size, other = model["image_size"], data["image_size"]
    models = _of_size("model", other)
    related = [found for found in models if found.startswith(name) or name.startswith(found)]
    near = difflib.get_close_matches(name, related or models, 1, cutoff=0)
    sets = ", ".join(_of_size("data", size))
    fits = [f"model={found}" for found in near] + ([f"data={sets}"] if sets else [])
    advice = f"take {', or '.join(fits)}" if fits else "no file in configs/ fits either of them"
    return (
        f"model={name} is for {size}x{size} images, data={data['name']} has {other}x{other}: "
        f"{advice}"
    )


def _of_size(group, size):
    """The options of a group for images of this size."""
    return [name for name, keys in load_all(group).items() if keys.get("image_size") == size]
