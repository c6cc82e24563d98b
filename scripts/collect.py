"""Collect finished and failed runs in results/: for each a row of runs.csv, a record in metrics/.

    python scripts/collect.py             # runs/; what is recorded stays
    python scripts/collect.py other/runs
    python scripts/collect.py --replace   # runs that were trained again replace their records

It names damaged runs, leaves them out and collects the others. Without a folder runs/ it makes
runs.csv from the records alone. A run that does not follow the YAML files of its names as they are
now (its schedule's was edited since, say) has deviations in runs.csv, and enters no table.
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting.runs import collect


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, config_dir=True, results=True)
    parser.add_argument(
        "runs",
        nargs="?",
        default="runs" if Path("runs").is_dir() else None,
        help="the folder of runs (default: runs)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="finished runs replace their finished records"
    )
    options = parser.parse_args(arguments)
    found = collect(options.runs, options.results, options.replace)
    print(f"{options.results}/runs.csv: {found}")


if __name__ == "__main__":
    main()
