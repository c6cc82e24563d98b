"""Attention modules, built from a channel count: each keeps the shape (N, C, H, W) of its map."""

from lcm.attention.cbam import CBAM
from lcm.attention.coordinate import CoordinateAttention
from lcm.attention.eca import ECA
from lcm.attention.global_context import GlobalContext
from lcm.attention.lcm import LCM1, LCM2
from lcm.attention.non_local import NonLocal
from lcm.attention.simam import SimAM
from lcm.attention.squeeze_excite import SqueezeExcite

__all__ = [
    "CBAM",
    "ECA",
    "LCM1",
    "LCM2",
    "CoordinateAttention",
    "GlobalContext",
    "NonLocal",
    "SimAM",
    "SqueezeExcite",
]
