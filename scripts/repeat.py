"""Train a recorded run again and compare every number of every epoch with the record.

    python scripts/repeat.py results/metrics/digits-resnet20-lcm2-seed0-XXXXXXXX.jsonl
    python scripts/repeat.py runs/cifar10/resnet20/se/seed0-XXXXXXXX data.root=FOLDER
    python scripts/repeat.py RUN --show                        # only train.py's command line

The repetition is trained with the record's number of threads, in a folder of its own. If it is
stopped, the same command continues it; one that is finished is trained anew. On the same processor
and versions the numbers must be the same, bit for bit; docs/exactness.md names the older commits
whose compiled runs are not. Elsewhere they differ by rounding, which training amplifies; the script
then names what differs between the environments. Further arguments, such as data.root, go to
train.py.
Exit codes: 0 the same numbers, 1 other numbers or a failed training, otherwise train.py's.
"""

import runpy
import shlex
import sys
from pathlib import Path

import checkout  # before lcm

from lcm.errors import UserError, exit_on_user_error, plural
from lcm.files import ROOT
from lcm.reporting.records import DamagedRecord, read_record, read_run
from lcm.runs.repeat import (
    arguments,
    compared,
    differences,
    other_environment,
    quoted,
    tolerances,
)


def read(path):
    """(run, epochs) of a finished run, from its record or directory. Raises UserError."""
    path = Path(path)
    try:
        run, epochs = read_run(path) if path.is_dir() else read_record(path)
    except DamagedRecord as error:
        raise UserError(f"{path}: {error}") from error
    if run["state"] != "finished":
        raise UserError(f"{path}: the run is {run['state']}; only a finished one can be compared")
    return run, epochs


@exit_on_user_error
def main(command_line=None):
    parser = checkout.parser(__doc__, config_dir=True)
    parser.add_argument("run", help="a record (results/metrics/*.jsonl) or a run directory")
    parser.add_argument(
        "further", nargs="*", metavar="key=value", help="further arguments of train.py"
    )
    parser.add_argument(
        "--runs", default="repeats", help="folder of the repetition (default: repeats)"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the command line and train nothing"
    )
    options = parser.parse_intermixed_args(command_line)
    run, epochs = read(options.run)
    words = ["rerun=true", *arguments(run, options.further), f"runs={quoted(options.runs)}"]
    if options.config_dir:
        words = ["--config-dir", options.config_dir, *words]
    print(f"python train.py {shlex.join(words)}", flush=True)
    if options.show:
        return
    # In this process, as its __main__: train.py's signals and exit codes are this command's.
    sys.argv[1:] = words
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")  # exits if it does not finish
    # The same name below another folder: it follows from the config.
    again, epochs_again = read(Path(options.runs) / run["run"])
    tolerance = tolerances(run)
    apart = differences(epochs, epochs_again, tolerance)
    count = plural(len(epochs["epoch"]), "epoch")
    same = f"the same numbers, bit for bit: {count} of {', '.join(compared(epochs))}"
    for column, allowed in tolerance.items():
        same += f" ({column}, which the record has from folded batch norms, to {allowed:g} of it)"
    print("\n".join([*(apart or [same]), *other_environment(run, again)]))
    sys.exit(1 if apart else 0)


if __name__ == "__main__":
    main()
