"""Show the state of runs: finished, live (epoch, accuracy, time left), stopped, failed, to do.

python scripts/status.py                                       # every run below runs/
python scripts/status.py other/runs
python scripts/status.py experiment=table2 seed='range(10)'    # a grid, as train.py takes it
python scripts/status.py -m model=resnet20 attention=none,lcm2
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import UserError, exit_on_user_error
from lcm.reporting.records import BEGUN, find_runs
from lcm.runs.grid import grid_of
from lcm.runs.status import status_of, statuses_of, table, time_left, totals


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, config_dir=True)
    parser.add_argument(
        "what", nargs="*", default=["runs"], help="a folder of runs, or train.py's arguments"
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="accepted and ignored: several values are a grid anyway",
    )
    options = parser.parse_intermixed_args(arguments)
    is_grid = len(options.what) > 1 or "=" in options.what[0]
    if is_grid:
        statuses = statuses_of(grid_of(options.what, options.config_dir))
        runs = Path(statuses[0].config["runs"])
    else:
        runs = Path(options.what[0])
        if not runs.is_dir():
            raise UserError(
                f"no folder {runs}: name the folder that holds the runs, or train something first"
            )
        statuses = [status_of(directory) for directory in find_runs(runs, (*BEGUN, "log.txt"))]
    print(f"{table(statuses, runs)}\n\n{totals(statuses)}")
    if is_grid and any(status.state != "finished" for status in statuses):
        print(f"training left: {time_left(statuses)}")


if __name__ == "__main__":
    main()
