"""From the command line to a run: overrides checked, exceptions as one message and exit code."""

import os
import signal
import sys
import traceback

# Hydra's parser of its own flags: there is no public way to it
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from lcm.config import compose
from lcm.config.check import typed
from lcm.config.command_line import for_hydra, is_sweep, override_problems, refuse_flags
from lcm.errors import (
    EXPECTED,
    Stopped,
    SweepFailed,
    UserError,
    exit_without_reader,
    in_words,
    listed,
)
from lcm.runs.state import commit
from lcm.runs.worker import run_one
from lcm.training.signals import STOP


def run_task(train, cfg):
    """Hydra's task: resolve the config and train. A single run's failure ends here.

    A run of a sweep returns an Outcome instead (lcm/runs/worker.py).
    """
    try:
        hydra = HydraConfig.get()
        compose.use_sources(hydra.runtime.config_sources)  # in a worker nobody has done it yet
        config = typed(compose.resolve(cfg))
        # A single run would ignore a grid and a launcher without a word.
        if hydra.mode != RunMode.MULTIRUN:
            if hydra.sweeper.params:
                raise UserError(
                    "hydra.sweeper.params is the grid of a sweep: add -m, or `hydra: {mode: "
                    "MULTIRUN}` to the file that has it"
                )
            launcher = hydra.runtime.choices["hydra/launcher"]
            if launcher != "basic":
                raise UserError(
                    f"hydra/launcher={launcher}: launchers start the runs of a sweep; add -m"
                )
            return train(config)
        outcome = run_one(train, config)
        if outcome.state == "stopped" and "SUBMITIT_EXECUTOR" in os.environ:
            # A job of the submitit launcher. SIGUSR1 means that its time is up: submitit's own
            # handler, which has this signal whenever no run is in progress, puts the job back into
            # the queue. After any other signal SLURM decides (scancel, scontrol requeue,
            # pre-emption). The job leaves no result either way: its sweep waits for the continued
            # job's.
            if outcome.signal == "SIGUSR1":
                signal.raise_signal(signal.SIGUSR1)
            sys.exit(Stopped.exit_code)
        return outcome
    except Exception as error:
        exit_with_message(error, debug=cfg.get("debug") is True)


def exit_with_message(error, debug=False):
    """Print an exception as one message and exit with its code.

    Unknown ones, and all of them with `debug`, get their traceback too.
    """
    error = STOP.behind(error)
    if debug or not isinstance(error, EXPECTED):
        traceback.print_exception(error)
    if isinstance(error, Stopped):
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
    elif not isinstance(error, SweepFailed):  # whose summary is there already
        print(f"error: {in_words(error)}", file=sys.stderr)
    sys.exit(error.exit_code if isinstance(error, EXPECTED) else 1)


def main(task):
    """Run Hydra's `task` on this process's command line; exit as `exit_with_message` says."""
    try:
        with STOP.listening():
            commit()  # read before somebody commits while a sweep goes on
            # Hydra takes flags before or behind all overrides, not among them.
            arguments, unknown = get_args_parser().parse_known_intermixed_args()
            flags = sys.argv[1:]
            for override in arguments.overrides:
                flags.remove(override)
            sys.argv[1:] = flags + arguments.overrides
            if unknown:
                raise UserError(
                    f"{unknown[0]}: no such flag; settings are KEY=VALUE, such as "
                    "schedule.epochs=30; python train.py --help lists them"
                )
            refuse_flags(arguments)
            # A shell completes lines that are not whole yet; these always have problems.
            if not arguments.shell_completion and (
                found := override_problems(
                    arguments.overrides, arguments.multirun, arguments.config_dir
                )
            ):
                raise listed("nothing was started:", found)
            # After the check, which quotes what was typed.
            if is_sweep(arguments.overrides, arguments.multirun):
                sys.argv[1:] = for_hydra(sys.argv[1:])
            sys.path.append(os.getcwd())  # where modules of one's own may be, beside the checkout
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would have printed
            task()
            print(end="", flush=True)  # there may be no sys.stdout
    except BrokenPipeError:  # of --help; a run has its own words
        exit_without_reader()
    except compose.COMPOSITION_ERRORS as error:
        exit_with_message(compose.not_composed(error))
    # Stopped is no Exception. SystemExit passes: it already has its code.
    except (Stopped, Exception) as error:
        exit_with_message(error)
