"""Many runs in one command, on top of Hydra's multirun.

Hydra expands the grid and its launchers start the runs (one after another here, or as SLURM jobs).
This adds four things: the whole grid is composed and checked before the first step; finished runs
are not started; runs that another process owns are skipped and checked again at the end, so that
several sweeps on one folder share the work; a summary ends the sweep.
"""

import json
import os
import sys
from pathlib import Path

from lcm.config.compose import use_sources
from lcm.data import build_data
from lcm.errors import OwnedElsewhere, Stopped, SweepFailed, UserError, listed, plural
from lcm.files import ROOT, unwritable
from lcm.runs.grid import grid
from lcm.runs.lock import owner_of
from lcm.runs.source import refuse_changed_source, set_aside
from lcm.runs.state import read_state
from lcm.runs.status import statuses_of, table, time_left, totals


def sweep(loader, master, arguments, launcher):
    """Train what is left of the grid.

    `loader`, `master`, `launcher`: Hydra's config loader, config of the sweep and launcher;
    `arguments`: the overrides. Raises UserError, before anything is started, where any run of the
    grid has a problem or its images cannot be read; afterwards, with the summary printed: Stopped
    after a signal, SweepFailed where runs failed, OwnedElsewhere where others train what is left.
    """
    use_sources(master.hydra.runtime.config_sources)
    runs = grid(loader, master, arguments)
    # Where these cannot be read, no finished run is set aside for nothing.
    read_images([run.config["data"] for run in runs if run.config["rerun"]])
    set_aside([run.config for run in runs])
    for run in runs:
        refuse_changed_source(run.config, read_state(run.directory))
    statuses = statuses_of(runs)
    print_work(statuses)
    read_images(
        [s.config["data"] for s in statuses if s.state != "finished" and not s.config["rerun"]]
    )
    # Tried once: in a folder that cannot be written every run would fail with these words.
    try:
        runs[0].directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(runs[0].directory, error) from error
    prepare_environment()
    failures = {}
    try:
        train_open(runs, failures, launcher)
    finally:
        # A run that failed before it had a run.json would be `to do`. `failures` also has those
        # that did finish (see train_open): the directory decides.
        statuses = [
            status._replace(state="failed", message=failures[status.directory])
            if status.directory in failures and status.state not in ("finished", "live")
            else status
            for status in statuses_of(runs)
        ]
        print_summary(statuses)
    unfinished = {status.state for status in statuses} - {"finished"}
    if unfinished == {"live"}:
        raise OwnedElsewhere("other processes train the rest of this sweep")
    if unfinished:
        raise SweepFailed("not every run of this sweep has finished: see above")


def read_images(datasets):
    """Build each data set (config `data`) once, so that missing images end the sweep and not each
    of its runs, and are downloaded, or decoded into a cache, before a job has to.

    Raises UserError with every problem.
    """
    found = []
    for data in {json.dumps(data): data for data in datasets}.values():
        try:
            build_data(data)
        except UserError as error:
            found.append(str(error))
    if found:
        raise listed("the sweep's images cannot be used, nothing was started:", found)


def train_open(runs, failures, launcher):
    """Launch what is open, until nothing is; fills `failures` with {directory: message}.

    Open is what is not finished, not owned by another process and did not end here. Each time all
    runs are looked at: what others trained may be left by an owner that died. Raises Stopped after
    a signal. Where the launcher itself fails, the run directories tell what was done.
    """
    kind = type(launcher).__name__  # BasicLauncher, SlurmLauncher, LocalLauncher
    number = 0
    while True:
        statuses = statuses_of(runs)
        todo = [
            run
            for run, status in zip(runs, statuses, strict=True)
            if status.state not in ("finished", "live") and run.directory not in failures
        ]
        if not todo:
            return
        if kind == "BasicLauncher":  # after each run the others are looked at again
            todo = todo[:1]
            place = 1 + sum(s.state == "finished" or s.directory in failures for s in statuses)
            name = todo[0].name or todo[0].directory
            print(f"\n[{place}/{len(runs)}] {name}  (left: {time_left(statuses)})", flush=True)
        else:
            print(
                f"handed to {kind}: {plural(len(todo), 'run')}; python scripts/status.py shows how "
                "far they are",
                flush=True,
            )
        try:
            returns = launcher.launch([run.overrides for run in todo], initial_job_idx=number)
            outcomes = [returned.return_value for returned in returns]
        except Exception as error:  # SLURM refused a job; it may go on with those that it has
            print(f"error: {kind} gave up: {type(error).__name__}: {error}", file=sys.stderr)
            return
        number += len(todo)
        for run, outcome in zip(todo, outcomes, strict=True):
            # A finished run is noted, too: where its directory does not say so, it would be
            # launched for ever. One that is owned elsewhere is not: its owner may die.
            if outcome.state in ("failed", "finished"):
                failures[run.directory] = outcome.message or (
                    "trained, but not in this directory: a path must not depend on the time or the "
                    "working directory, and no YAML file may change while a sweep runs"
                )
            elif outcome.state == "stopped":
                raise Stopped(outcome.signal, outcome.message)


def prepare_environment():
    """What the jobs of a cluster need in their environment: this package, modules of one's own in
    the working directory, and the signal that precedes the time limit.

    submitit reads the signal when it is imported, here and in the job; ours
    (lcm/training/signals.py) save the run.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    paths = [str(ROOT), os.environ.get("PYTHONPATH"), os.getcwd()]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def print_work(statuses):
    """What the sweep will do, before it starts."""
    states = {status.state for status in statuses}
    print(totals(statuses) + ("; the failed ones are tried again" if "failed" in states else ""))
    if states == {"finished"}:
        print("all finished: nothing to train")
    else:
        print(f"training left: {time_left(statuses)}", flush=True)


def print_summary(statuses):
    """Every run with its result, and every failure with its message and log."""
    folder = Path(statuses[0].config["runs"])
    shown = [status._replace(message=None) for status in statuses]
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
