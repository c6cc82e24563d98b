"""Many runs in one command, on top of Hydra's multirun: checked as a whole, finished runs left
alone, one failure stops nothing.

Hydra expands the grid and its launchers start the runs (one after another, joblib's workers, SLURM
jobs). What is added: the whole grid is composed and checked before the first step; runs that are
finished are not started; runs that another process owns are skipped and checked again at the end,
so that several sweeps on one folder share the work; a summary.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from lcm.config.compose import use_sources
from lcm.errors import SIGNALS, OwnedElsewhere, Stopped, SweepFailed, UserError, listed, plural
from lcm.files import unwritable
from lcm.runs.grid import grid, refuse_problems
from lcm.runs.lock import owner_of
from lcm.runs.source import set_aside, source_problem
from lcm.runs.status import status_of, table, time_left, totals
from lcm.runs.worker import Outcome


def sweep(loader, master, arguments, launcher, max_batch_size=None):
    """Train what is left of the grid.

    `loader`, `master`, `launcher`: Hydra's config loader, config of the sweep and launcher;
    `arguments`: the overrides. Raises UserError, before anything is started, where any run of the
    grid has a problem; afterwards, with the summary printed: Stopped after a signal, SweepFailed
    where runs failed, OwnedElsewhere where others train what is left.
    """
    use_sources(master.hydra.runtime.config_sources)
    if master.hydra.job.chdir:  # from a file; on the command line it is refused before
        raise UserError(
            "hydra.job.chdir: runs are trained where the command is given; leave it out"
        )
    runs = grid(loader, master, arguments)
    refuse_problems(runs)
    if found := [text for run in runs if (text := source_problem(run.config))]:
        raise listed("nothing was started:", found)
    for run in runs:
        set_aside(run.config)
    statuses = [status_of(run.directory) for run in runs]
    print_plan(runs, statuses)
    stopped = None
    failures = {}
    if any(status.state != "finished" for status in statuses):
        refuse_unwritable(runs, statuses)
        prepare_environment()
        try:
            train_open(runs, failures, launcher, max_batch_size)
        except Stopped as request:
            stopped = request
        statuses = [status_of(run.directory) for run in runs]
    for index, (run, status) in enumerate(zip(runs, statuses, strict=True)):
        if run.directory in failures and status.state not in ("finished", "live"):
            statuses[index] = status._replace(state="failed", message=failures[run.directory])
    print_summary(runs, statuses)
    if stopped:
        raise stopped
    unfinished = {status.state for status in statuses} - {"finished"}
    if unfinished == {"live"}:
        raise OwnedElsewhere("other processes train what is left of this sweep")
    if unfinished:
        raise SweepFailed("not every run of this sweep has finished: see above")


def refuse_unwritable(runs, statuses):
    """Raise UserError where the first run that is left cannot have its directory."""
    left = [run.directory for run, s in zip(runs, statuses, strict=True) if s.state != "finished"]
    try:
        left[0].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(left[0], error) from error


def train_open(runs, failures, launcher, max_batch_size):
    """Launch what is open, in order, until nothing is; fills `failures` with {directory: message}.

    After a pass over the grid it checks again: what others trained may be finished, or left by an
    owner that died. A run that failed here is not tried again. Three passes in a row in which no
    run came to an end (its worker was killed, say) are the last.
    """
    kind = type(launcher).__name__  # BasicLauncher, JoblibLauncher, SlurmLauncher, LocalLauncher
    number = 0
    idle = 0
    while idle < 3:
        todo = [run for run in runs if is_open(run, failures)]
        if not todo:
            return
        idle += 1
        size = 1 if kind == "BasicLauncher" else max_batch_size or len(todo)
        for start in range(0, len(todo), size):
            batch = [run for run in todo[start : start + size] if is_open(run, failures)]
            if not batch:
                continue
            print_launch(runs, batch, kind)
            outcomes = launch(launcher, kind, batch, number)
            number += len(batch)
            failures |= {
                run.directory: outcome.message
                for run, outcome in zip(batch, outcomes, strict=True)
                if outcome.state == "failed"
            }
            for outcome in outcomes:
                if outcome.state == "stopped":
                    raise Stopped(outcome.signal, outcome.message)
                if outcome.state == "lost" and kind != "JoblibLauncher":
                    return  # a cluster may go on with them: another pass would hand them over again
            if not all(is_open(run, failures) for run in batch):
                idle = 0


def launch(launcher, kind, batch, number):
    """Launch some runs and wait for their Outcomes. Raises Stopped after a signal."""
    with passing_on_signals() if kind == "JoblibLauncher" else contextlib.nullcontext():
        try:
            returns = launcher.launch([run.overrides for run in batch], initial_job_idx=number)
            return [returned.return_value for returned in returns]
        except (
            Exception
        ) as error:  # a worker was killed, SLURM refused a job; the directories tell what was done
            print(f"error: {kind} gave up: {type(error).__name__}: {error}", file=sys.stderr)
            return [Outcome("lost")] * len(batch)


@contextlib.contextmanager
def passing_on_signals():
    """Pass signals on to the workers while the block runs: they save their runs and end; then raise
    Stopped here too.
    """
    asked = []

    def pass_on(number, frame):
        asked.append(signal.Signals(number).name)
        for worker in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)

    listening = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in listening}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Stopped(asked[0], "every run in progress was saved")


def prepare_environment():
    """What the jobs of a cluster need in their environment: this package, modules of one's own in
    the working directory, and the signal that precedes the time limit.

    submitit reads the signal when it is imported, here and in the job; ours
    (lcm/training/signals.py) save the run.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [root, os.environ.get("PYTHONPATH"), os.getcwd()])
    )


def is_open(run, failures):
    """Whether a run is still to be trained by this sweep: not finished, not owned by another, not
    failed here.
    """
    return run.directory not in failures and status_of(run.directory).state not in (
        "finished",
        "live",
    )


def print_launch(runs, batch, launcher):
    """The run that starts now and what is left, or how many are handed over."""
    statuses = [status_of(run.directory) for run in runs]
    left = time_left([run.config for run in runs], statuses)
    if launcher == "BasicLauncher":
        finished = sum(status.state == "finished" for status in statuses)
        print(
            f"\n[{finished + 1}/{len(runs)}] {batch[0].name or batch[0].directory}  (left: {left})",
            flush=True,
        )
    else:
        print(
            f"handed to {launcher}: {plural(len(batch), 'run')}; python scripts/status.py shows how far they are",
            flush=True,
        )


def print_plan(runs, statuses):
    """What the sweep will do, before it starts."""
    states = {status.state for status in statuses}
    print(totals(statuses) + ("; the failed ones are tried again" if "failed" in states else ""))
    if states != {"finished"}:
        print(f"training left: {time_left([run.config for run in runs], statuses)}", flush=True)
    else:
        print("all finished: nothing to train")


def print_summary(runs, statuses):
    """Every run with its result, and every failure with its message and log."""
    folder = Path(runs[0].config["runs"])
    shown = [
        status._replace(message=None, config=run.config)
        for run, status in zip(runs, statuses, strict=True)
    ]
    print(
        f"\n{table(shown, folder)}\n\n{totals(statuses)}",
        flush=True,
    )
    for status in statuses:
        if status.state == "failed":
            print(
                f"failed: {status.directory}\n  {status.message}\n"
                f"  log: {status.directory / 'log.txt'}",
                file=sys.stderr,
            )
        elif status.state == "stopped":
            print(
                f"stopped: {status.directory}: {status.message}; the same command continues it",
                file=sys.stderr,
            )
        elif status.state == "live":
            print(
                f"being trained elsewhere: {status.directory}: {owner_of(status.directory)}",
                file=sys.stderr,
            )
