"""LC modules and other channel attention under one protocol: a retracted paper, reproduced.

Z. Lu et al., "Channel-Wise Correlation Calibrates Attention Module for Convolutional Neural
Networks", Journal of Sensors 2022, 2000170, https://doi.org/10.1155/2022/2000170; retracted in
December 2023.
"""

import importlib

__version__ = "0.1.0"

# Reading results needs no torch: the names below are imported when they are first used.
_HOME = {
    "build_network": "lcm.models.build",
    "fill_sites": "lcm.models.sites",
    "remove_attention": "lcm.models.sites",
    "draw_weights": "lcm.models.weights",
    "count": "lcm.complexity",
    "load_run": "lcm.runs.load",
    "UserError": "lcm.errors",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lcm' has no attribute {name!r}")
