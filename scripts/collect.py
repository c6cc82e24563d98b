"""Collect finished and failed runs in results/: for each a row of runs.csv, a record in metrics/.

    python scripts/collect.py             # runs/; records of other runs stay
    python scripts/collect.py other/runs

It names damaged runs, leaves them out and collects the others. Without a folder runs/ it makes
runs.csv from the records alone.
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting.runs import collect


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, results=True)
    parser.add_argument(
        "runs",
        nargs="?",
        default="runs" if Path("runs").is_dir() else None,
        help="the folder of runs (default: runs)",
    )
    options = parser.parse_args(arguments)
    print(f"{options.results}/runs.csv: {collect(options.runs, options.results)}")


if __name__ == "__main__":
    main()
