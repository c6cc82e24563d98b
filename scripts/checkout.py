"""Imported by every script: `lcm` is that of the script's own checkout, as in train.py, not an installed one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
