"""Every script imports this first: `lcm` is then that of its own checkout, as in train.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
