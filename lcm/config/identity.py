"""What a config says about a run: its identity, the hash of it, and how far it is from the protocol
of its names.
"""

import hashlib
import json

from lcm.config.check import typed
from lcm.config.compose import flatten, plain

# Keys that are no part of a run's identity: folders, what is shown, and the machine, which changes
# numbers by rounding at most and is in run.json.
NOT_IDENTITY = (
    "device",
    "threads",
    "allocator",
    "capture",
    "runs",
    "run_directory",
    "rerun",
    "checkpoint",
    "tensorboard",
    "progress",
    "debug",
    "data.root",
    "data.workers",
    "data.download",
    "data.places",
    "data.cache_dir",
)
# Keys that are part of a run's identity and no deviation from the protocol: rounding, and where the
# protocol leaves the choice.
NO_DEVIATION = (
    "seed",
    "precision",
    "compile",
    "deterministic",
    "channels_last",
    "model.memory",
    "schedule.test_batch_size",
    "data.verify",
    "data.cache_size",  # of the images that regions are cut from: the paper is silent
    "data.label",  # images of one's own: the protocol says nothing about them
    "data.test_share",
)


# Keys that came later, with what the runs recorded before them were trained with: it is no part of
# a hash, so that theirs do not change.
ADDED = {
    "schedule.decay": "steps",
    "schedule.warm_up": 0,
    "schedule.label_smoothing": 0,
    "schedule.optimizer": "sgd",
    "schedule.betas": [0.9, 0.999],
    "schedule.eps": 1e-8,
    "data.verify": True,
}
# A setting that was removed. It was true in every recorded run, and stays in the hash so that
# theirs do not change. Evaluation does not fold batch norms any more: test losses differ by
# rounding.
REMOVED = {"fold_batch_norm": True}


def is_under(key, names):
    """Whether a flat key is one of `names` or is below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def identity(config):
    """Everything in a resolved config that can change the numbers, flat: {"seed": 0,
    "schedule.epochs": 300, ...}.

    Whole floats are written as integers: 1 and 1.0 are one value.
    """
    # `paper` is a table for all backbones, and the sizes read from it are keys themselves; a
    # target says where code lies. A row more, or a class that moves, makes no other run.
    settings = {
        key: value
        for key, value in sorted((ADDED | REMOVED | flatten(config)).items())
        if not is_under(key, (*NOT_IDENTITY, "attention.paper", "model.paper"))
        and key.partition(".")[2] not in ("_target_", "_convert_")  # of a choice; not below a key
    }
    return json.loads(
        json.dumps(settings),
        parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text),
    )


def differing(configs):
    """{key: its values, as JSON} of the keys that have several values among flat configs."""
    keys = sorted({key for config in configs for key in config})
    values = {key: sorted({json.dumps(config.get(key)) for config in configs}) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def config_hash(config):
    """SHA-256 of a config's identity, in hex; without ADDED keys that are as before."""
    hashed = {
        key: value
        for key, value in identity(config).items()
        if key not in ADDED or ADDED[key] != value
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def deviations(config):
    """The keys, with values, in which a config differs from the protocol of its names; None for one
    that it lacks.
    """
    own, expected = identity(config), identity(typed(plain(config)))
    return {
        key: own.get(key)
        for key in sorted(own.keys() | expected.keys())
        if not is_under(key, (*NO_DEVIATION, *REMOVED))
        and (key not in own or key not in expected or own[key] != expected[key])
    }
