"""Data sets: `Digits`, `Cifar` and `class_folders`, built from the keys of a file in configs/data."""

import importlib

from lcm.errors import UserError

# A run needs only one of them: each is imported when it is first used.
_HOME = {
    "Digits": "lcm.data.digits",
    "Cifar": "lcm.data.cifar",
    "class_folders": "lcm.data.folder",
}
__all__ = ["Cifar", "Digits", "build_data", "class_folders"]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lcm.data' has no attribute {name!r}")


def build_data(config):
    """The data set of a config group `data` (a plain dict): its `_target_`, called with the other
    keys.

    Raises UserError where there is no such target; exceptions of the data set's own code are not
    wrapped.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, _partial_=True, _recursive_=False, _convert_="all")()
    except InstantiationException as error:
        raise UserError(f"data={config['name']}: {str(error).splitlines()[0]}") from error
