"""Many runs in one command, on top of Hydra's multirun: checked as a whole, finished runs left alone, one failure stops nothing.

Hydra expands the grid and its launchers start the runs (one after another, joblib's workers, SLURM jobs). What is added:
the whole grid is composed and checked before the first step; runs that are finished are not started; runs that another
process owns are passed over and looked at again at the end, so that several sweeps on one folder share the work; a summary.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lcm import cli as launch
from lcm.config.check import check
from lcm.config.command_line import composition_fault
from lcm.errors import FAILED, FINISHED, OWNED_ELSEWHERE, SIGNALS, Stopped, UserError
from lcm.runs.standing import Speed, count, look, table
from lcm.runs.state import run_directory
from lcm.runs.worker import Outcome


class Job(NamedTuple):
    """One point of a grid: its name ("attention=se seed=1"), Hydra's overrides for it, its config and what is wrong with it.

    `config`: resolved, as nested dicts; None where it does not compose.
    """

    name: str
    overrides: list
    config: dict | None
    faults: list

    @property
    def directory(self):
        return run_directory(self.config)


def grid(loader, master, arguments):
    """Every Job of a sweep, composed and checked; a run that the grid names twice is in it once.

    `arguments`: the command line's overrides; the grid of an experiment is in `master.hydra.sweeper.params`.
    A job that differs from an earlier one in its seed alone is not composed again: the seed is a plain number in the config.
    """
    texts = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()] + list(arguments)
    parser = OverridesParser.create(config_loader=loader)
    try:
        overrides = parser.parse_overrides(texts)
        rows = BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException as error:
        raise UserError(f"the grid cannot be expanded: {str(error).splitlines()[0]}") from error
    swept = {override.get_key_element(): override.is_sweep_override() for override in overrides}  # the last one counts
    arms = {}  # a job of each kind, the seed apart
    for row in rows:
        arms.setdefault(without_seed(row), row)
    composed = dict(zip(arms, compose(loader, master, list(arms.values())), strict=True))
    jobs = {}
    for row in rows:
        name = " ".join(text for text in row if swept[text.partition("=")[0]])
        config, faults = composed[without_seed(row)]
        if config:
            for text in row:
                if text.startswith("seed="):
                    config = config | {"seed": parser.parse_override(text).value()}
            faults = check(config)
        job = Job(name, row, config, faults)
        jobs.setdefault(name if faults else job.directory, job)
    if len(rows) > 1 and any(job.config and job.config["run_directory"] for job in jobs.values()):
        raise UserError(
            f"run_directory names one directory for {len(rows)} runs: leave it out, or set runs=ANOTHER_FOLDER"
        )
    return list(jobs.values())


def without_seed(row):
    """A job's overrides without its seed."""
    return tuple(text for text in row if not text.startswith("seed="))


def compose(loader, master, rows):
    """Hydra's composition of some jobs: for each (its resolved config or None, the faults that kept it from composing).

    Hydra takes a tenth of a second for one; many are composed by several processes, forked from this one.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(processors, len(rows) // 4)
    if processes < 2:
        return [_compose_one(loader, master, row) for row in rows]
    with multiprocessing.get_context("fork").Pool(processes, _begin, [loader, master]) as pool:
        return pool.map(_compose_next, rows, chunksize=1)


def _compose_one(loader, master, row):
    try:
        composed = loader.load_sweep_config(master, list(row))
        config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
        return OmegaConf.to_container(config, resolve=True), []
    except (HydraException, OmegaConfBaseException) as error:
        return None, [composition_fault(error)]


def _begin(*hydra):
    """In a forked process: keep what came with the fork, and leave signals to the parent."""
    global _hydra
    _hydra = hydra
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def _compose_next(row):
    return _compose_one(*_hydra, row)


def refuse_faults(jobs):
    """Raise UserError with every fault of every job, each once, with the jobs that have it."""
    found = {}
    for job in jobs:
        for fault in job.faults:
            found.setdefault(fault, []).append(job)
    if found:
        lines = [
            f"  {fault}\n    in {len(having)} of {len(jobs)} runs: {having[0].name}" + (" ..." if having[1:] else "")
            for fault, having in found.items()
        ]
        raise UserError("\n".join(["the grid has faults, nothing was started:", *lines]))


class Sweep(Sweeper):
    """Hydra's sweeper for this project: configs/train.yaml names it, `launch.main` makes it known to Hydra.

    It takes BasicSweeper's settings: `params`, the grid of an experiment, and `max_batch_size`, how many jobs at most are
    handed to a launcher at once (null: all; the launcher that runs one after another always gets one).
    """

    def __init__(self, max_batch_size=None, params=None):
        self.max_batch_size = max_batch_size

    def setup(self, *, hydra_context, task_function, config):
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.kind = type(self.launcher).__name__  # BasicLauncher, JoblibLauncher, SlurmLauncher, LocalLauncher

    def sweep(self, arguments):
        """Train what is left of the grid, then exit: 0 all finished, 1 some failed, 3 some are trained by others, 75 stopped.

        Raises UserError, before anything is started, where any job of the grid has a fault.
        """
        try:
            jobs = grid(self.loader, self.config, arguments)
            refuse_faults(jobs)
        except UserError as error:
            launch.end(error)
        launch.composed()
        started = time.time()
        standings = [look(job.directory) for job in jobs]
        print_plan(jobs, standings)
        stopped, failures = None, {}
        if any(standing.state != "finished" for standing in standings):
            prepare_environment()
            try:
                self._train(jobs, failures, started)
            except Stopped as request:
                stopped = request
            standings = [look(job.directory) for job in jobs]
        standings = [
            standing._replace(state="failed", message=failures[job.directory])
            if job.directory in failures and standing.state not in ("finished", "live")
            else standing
            for job, standing in zip(jobs, standings, strict=True)
        ]
        print_summary(jobs, standings)
        states = {standing.state for standing in standings}
        if stopped:
            launch.end(stopped)
        sys.exit(FINISHED if states == {"finished"} else OWNED_ELSEWHERE if states <= {"finished", "live"} else FAILED)

    def _train(self, jobs, failures, started):
        """Launch what is open, in order, until nothing is; fills `failures` with {directory: message}.

        After a pass over the grid it looks again: what others trained may be finished, or left by an owner that died. A run
        that failed since `started` (seconds since 1970) is not tried again, here or by another sweep on the same folder.
        Three passes in a row in which no run came to an end (its worker was killed, say) are the last.
        """
        number = idle = 0
        while idle < 3:
            todo = [job for job in jobs if is_open(job, failures, started)]
            if not todo:
                return
            idle += 1
            size = 1 if self.kind == "BasicLauncher" else self.max_batch_size or len(todo)
            for start in range(0, len(todo), size):
                batch = [job for job in todo[start : start + size] if is_open(job, failures, started)]
                if not batch:
                    continue
                print_launch(jobs, batch, self.kind)
                outcomes = self._launch(batch, number)
                number += len(batch)
                failures |= {j.directory: o.message for j, o in zip(batch, outcomes, strict=True) if o.end == "failed"}
                for outcome in outcomes:
                    if outcome.end == "stopped":
                        raise Stopped(outcome.message)
                    if outcome.end == "lost" and self.kind != "JoblibLauncher":
                        return  # jobs that a cluster has already may go on: another pass would hand them over again
                    if outcome.end in ("finished", "failed"):
                        idle = 0

    def _launch(self, batch, number):
        """Launch some jobs and wait for their Outcomes. Raises Stopped after a signal."""
        with passing_on_signals() if self.kind == "JoblibLauncher" else contextlib.nullcontext():
            try:
                returns = self.launcher.launch([job.overrides for job in batch], initial_job_idx=number)
                return [job_return.return_value for job_return in returns]
            except Exception as error:  # a worker was killed, SLURM refused a job; the directories tell what was done
                print(f"error: {self.kind} gave up: {type(error).__name__}: {error}", file=sys.stderr)
                finished = [look(job.directory).state == "finished" for job in batch]
                return [Outcome("finished" if done else "lost") for done in finished]


@contextlib.contextmanager
def passing_on_signals():
    """Pass signals on to the workers while the block runs: they save their runs and end; then raise Stopped here too."""
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
        raise Stopped(f"{asked[0]}: every run in progress was saved")


def prepare_environment():
    """What the jobs of a cluster need in their environment: this package, and the signal that precedes the time limit.

    submitit reads the signal when it is imported, here and in the job; ours (lcm/training/signals.py) save the run.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def is_open(job, failures, started):
    """Whether a job is still to be trained by this sweep: not finished, not owned, not failed since it started."""
    standing = look(job.directory)
    if standing.state in ("finished", "live") or job.directory in failures:
        return False
    if standing.state == "failed":
        with contextlib.suppress(OSError):
            return (job.directory / "run.json").stat().st_mtime < started
    return True


def print_launch(jobs, batch, launcher):
    """The run that starts now and what is left, or how many are handed over."""
    standings = [look(job.directory) for job in jobs]
    left = Speed().left([job.config for job in jobs], standings)
    if launcher == "BasicLauncher":
        finished = sum(standing.state == "finished" for standing in standings)
        print(f"\n[{finished + 1}/{len(jobs)}] {batch[0].name or batch[0].directory}  (left: {left})", flush=True)
    else:
        print(f"{len(batch)} runs go to {launcher}; python scripts/status.py shows how far they are", flush=True)


def print_plan(jobs, standings):
    """What the sweep will do, before it starts."""
    states = {standing.state for standing in standings}
    print(count(standings) + ("; the failed ones are tried again" if "failed" in states else ""))
    if states != {"finished"}:
        print(f"training left: {Speed().left([job.config for job in jobs], standings)}", flush=True)
    else:
        print("all finished: nothing to train")


def print_summary(jobs, standings):
    """Every run with its result, and every failure with its message and log."""
    runs = Path(jobs[0].config["runs"])
    print(f"\n{table([s._replace(message=None) for s in standings], runs)}\n\n{count(standings)}", flush=True)
    for standing in standings:
        if standing.state == "failed":
            print(
                f"failed: {standing.directory}\n  {standing.message}\n  log: {standing.directory / 'log.txt'}",
                file=sys.stderr,
            )
        elif standing.state == "stopped":
            print(f"stopped: {standing.directory}: {standing.message}; the same command continues it", file=sys.stderr)
        elif standing.state == "live":
            with contextlib.suppress(OSError):
                owner = (standing.directory / "owner.lock").read_text().strip()
                print(f"being trained elsewhere: {standing.directory}: {owner}", file=sys.stderr)
