"""Configs for tests: as Hydra composes a command line, and as the names alone give them; and the
run.json of one.
"""

from types import SimpleNamespace

from lcm.config import compose
from lcm.config.check import typed
from lcm.config.compose import plain, resolve
from lcm.runs.state import begun


def composed(*overrides):
    """The config of train.py's arguments, resolved, as nested dicts."""
    return typed(resolve(compose.composed(overrides)))


def config(model="resnet20", attention="lcm2", data="digits", schedule=None, **changes):
    """What these names stand for, with changes: config(schedule__epochs=2)."""
    names = {
        "model": model,
        "attention": attention,
        "data": data,
        "schedule": schedule or data,  # as train.yaml has it
    }
    found = plain({group: {"name": name} for group, name in names.items()})
    for key, value in changes.items():
        *groups, last = key.split("__")
        place = found
        for group in groups:
            place = place[group]
        place[last] = value
    return found


def begun_state(config, **changes):
    """The run.json of a run of this config that has just begun."""
    data = SimpleNamespace(fingerprint="f00d", num_classes=10)
    complexity = SimpleNamespace(params=1, gfloat=0.1, macs=1, uncounted=[])
    here = {"versions": {}, "device": "cpu"}
    return begun(config, None, {}, None, data, complexity, 1, here) | changes
