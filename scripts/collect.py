"""Collect the finished runs in results/: runs.csv (one row per run) and metrics/ (their records).

    python scripts/collect.py                         # runs/; records of other runs stay
    python scripts/collect.py other/runs
    python scripts/collect.py --from results/metrics  # runs.csv from the records alone

It names damaged runs, leaves them out and collects the others.
"""

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting.runs import collect, rebuild


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "runs", nargs="?", default="runs", help="the folder of runs (default: runs)"
    )
    parser.add_argument(
        "--from",
        dest="records",
        metavar="DIR",
        help="rebuild runs.csv from a folder of records instead",
    )
    parser.add_argument(
        "--results", default="results", help="folder of the results (default: results)"
    )
    options = parser.parse_args(arguments)
    summary = (
        rebuild(options.records, options.results)
        if options.records
        else collect(options.runs, options.results)
    )
    print(f"{options.results}/runs.csv: {summary}")


if __name__ == "__main__":
    main()
