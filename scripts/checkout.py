"""Every script imports this first: `lcm` is then that of its own checkout, as in train.py."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parser(documentation, config_dir=False, results=False):
    """A script's argument parser; with the options --config-dir (of train.py) and --results."""
    sys.path.append(os.getcwd())  # where modules of one's own may be, as for train.py
    made = argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if config_dir:
        from lcm.config.compose import use_config_dir

        made.add_argument(
            "--config-dir",
            type=use_config_dir,
            metavar="FOLDER",
            help="where further attentions, networks, data sets and schedules are, as for train.py",
        )
    if results:
        made.add_argument(
            "--results",
            type=Path,
            default="results",
            help="folder of the results (default: results)",
        )
    return made
