"""What a config says about a run: its identity, the hash of it, and how far it is from the protocol of its names."""

import hashlib
import json

from lcm.config.options import flatten, plain

# Keys that cannot change a number: folders, the machine, what is shown.
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
    "data.verify",
    "data.download",
    "data.places",
    "data.cache_dir",
)
# Keys that are part of a run's identity and no deviation from the protocol: rounding, and where the protocol leaves the choice.
NO_DEVIATION = (
    "seed",
    "precision",
    "compile",
    "deterministic",
    "channels_last",
    "model.memory",
    "schedule.test_batch_size",
    "data.cache",  # regions cut from cached images or from the files' own pixels: the paper does not say
    "data.cache_size",
)


# A setting that was removed. It was true in every recorded run, and stays in the hash so that theirs do
# not change. Evaluation does not fold batch norms any more: test losses differ by rounding.
REMOVED = {"fold_batch_norm": True}


def is_under(key, names):
    """Whether a flat key is one of `names` or is below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def identity(config):
    """Everything in a resolved config that can change the numbers, flat: {"seed": 0, "schedule.epochs": 300, ...}."""
    return {
        key: value
        for key, value in sorted((REMOVED | flatten(config)).items())
        if not is_under(key, (*NOT_IDENTITY, "attention.paper"))
        and not key.endswith(("_target_", "_convert_"))
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
        if not is_under(key, (*NO_DEVIATION, *REMOVED))
        and (key not in expected or expected[key] != value)
    }
