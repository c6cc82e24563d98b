"""Data sets: `Digits`, `Cifar` and `MiniImageNet`, each built from the keys of its file in configs/data."""

import importlib

# A run needs one of them: each is imported when it is first used.
_HOME = {
    "Digits": "lcm.data.sources",
    "Cifar": "lcm.data.sources",
    "MiniImageNet": "lcm.data.mini_imagenet.dataset",
}
__all__ = ["Cifar", "Digits", "MiniImageNet"]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lcm.data' has no attribute {name!r}")
