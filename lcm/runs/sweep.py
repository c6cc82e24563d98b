"""Many runs in one command, on top of Hydra's multirun.

Hydra expands the grid and its launchers start the runs (one after another, joblib's workers, SLURM
jobs). This adds four things: the whole grid is composed and checked before the first step; finished
runs are not started; runs that another process owns are skipped and checked again at the end, so
that several sweeps on one folder share the work; a summary ends the sweep.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from lcm.config.compose import use_sources
from lcm.errors import SIGNALS, OwnedElsewhere, Stopped, SweepFailed, UserError, plural
from lcm.files import unwritable
from lcm.runs.grid import grid
from lcm.runs.lock import owner_of
from lcm.runs.source import refuse_changed_source, set_aside
from lcm.runs.state import read_state
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
            "hydra.job.chdir: runs keep the working directory of the command; leave it out"
        )
    runs = grid(loader, master, arguments)
    set_aside([run.config for run in runs])
    for run in runs:
        refuse_changed_source(run.config, read_state(run.directory))
    statuses = [status_of(run.directory) for run in runs]
    print_plan(runs, statuses)
    stopped = None
    failures = {}
    left = [run for run, status in zip(runs, statuses, strict=True) if status.state != "finished"]
    if left:
        try:
            left[0].directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(left[0].directory, error) from error
        prepare_environment()
        try:
            train_open(runs, failures, launcher, max_batch_size)
        except Stopped as request:
            stopped = request
        statuses = [status_of(run.directory) for run in runs]
    for index, status in enumerate(statuses):
        if status.directory in failures and status.state not in ("finished", "live"):
            statuses[index] = status._replace(state="failed", message=failures[status.directory])
    print_summary(runs, statuses)
    if stopped:
        raise stopped
    unfinished = {status.state for status in statuses} - {"finished"}
    if unfinished == {"live"}:
        raise OwnedElsewhere("other processes train the rest of this sweep")
    if unfinished:
        raise SweepFailed("not every run of this sweep has finished: see above")


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
        todo = open_runs(runs, failures)
        if not todo:
            return
        idle += 1
        size = 1 if kind == "BasicLauncher" else max_batch_size or len(todo)
        for start in range(0, len(todo), size):
            batch = open_runs(todo[start : start + size], failures)
            if not batch:
                continue
            print_launch(runs, batch, kind)
            outcomes = launch(launcher, kind, batch, number)
            number += len(batch)
            for run, outcome in zip(batch, outcomes, strict=True):
                if outcome.state == "failed":
                    failures[run.directory] = outcome.message
                elif outcome.state == "stopped":
                    raise Stopped(outcome.signal, outcome.message)
                elif outcome.state == "lost" and kind != "JoblibLauncher":
                    return  # a cluster may go on with them: another pass would hand them over again
            if len(open_runs(batch, failures)) < len(batch):
                idle = 0


def open_runs(runs, failures):
    """What this sweep still has to train: not finished, not owned by another, not failed here."""
    closed = ("finished", "live")
    return [
        run
        for run in runs
        if run.directory not in failures and status_of(run.directory).state not in closed
    ]


def launch(launcher, kind, batch, number):
    """Launch some runs and wait for their Outcomes. Raises Stopped after a signal.

    Where the launcher fails, the run directories tell what was done.
    """
    with passing_on_signals() if kind == "JoblibLauncher" else contextlib.nullcontext():
        try:
            returns = launcher.launch([run.overrides for run in batch], initial_job_idx=number)
            return [returned.return_value for returned in returns]
        except Exception as error:  # a worker was killed, SLURM refused a job
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


def print_launch(runs, batch, launcher):
    """The run that starts now and what is left, or how many are handed over."""
    statuses = [status_of(run.directory) for run in runs]
    if launcher == "BasicLauncher":
        finished = sum(status.state == "finished" for status in statuses)
        left = time_left([run.config for run in runs], statuses)
        name = batch[0].name or batch[0].directory
        words = f"\n[{finished + 1}/{len(runs)}] {name}  (left: {left})"
    else:
        words = f"handed to {launcher}: {plural(len(batch), 'run')}"
        words += "; python scripts/status.py shows how far they are"
    print(words, flush=True)


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
    print(f"\n{table(shown, folder)}\n\n{totals(statuses)}", flush=True)
    for status in statuses:
        place = status.directory
        words = {
            "failed": f"failed: {place}\n  {status.message}\n  log: {place / 'log.txt'}",
            "stopped": f"stopped: {place}: {status.message}; the same command continues it",
            "live": f"being trained elsewhere: {place}: {owner_of(place)}",
        }
        if status.state in words:
            print(words[status.state], file=sys.stderr)
