"""Processes that take turns: the same seconds of work for every side, round after round, undisturbed by other programs."""

import contextlib
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from benchmark import other_load
from benchmark.worker import Spec, prepare, rate, turn

from lcm.errors import UserError

DISTURBED = 0.1  # processors that other programs keep busy; a round with more is thrown away


class Side:
    """One side, as the parent of its processes sees it.

    Args:
        what: the function that makes its unit of work, in the file `side`.
        variant: its name in the table; words in it set the precision (tf32, bf16) and how a step runs (compiled, eager, NCHW).
        base: the side that this one's ratio refers to; by default itself.
        runs: processes that do the same work at once in its turn.
        fields: other fields of its Spec.
    """

    def __init__(self, options, what, variant="fp32", side="project", base=None, runs=1, **fields):
        words = variant.split()
        precision = next((word for word in words if word in ("tf32", "bf16")), "fp32")
        how = {
            "compile": "compiled" in words,
            "capture": "eager" not in words,
            "channels_last": "NCHW" not in words,
        }
        usual = {key: getattr(options, key) for key in ("device", "threads", "seconds", "loaders")}
        self.spec = Spec(side, what, precision=precision, **how, **usual | fields)
        self.variant, self.base, self.runs = variant, base or self, runs
        self.pools, self.refused = [], None  # refused: why it cannot do its work

    def launch(self):
        """Start the processes and do not wait for them."""
        if not self.pools:
            spawn = multiprocessing.get_context("spawn")
            self.pools = [ProcessPoolExecutor(1, spawn) for _ in range(self.runs)]
            self.prepared = [pool.submit(prepare, self.spec) for pool in self.pools]

    def start(self):
        """Have the processes ready for their turns; returns whether they are."""
        if self.refused is None:
            self.launch()
            self._results(self.prepared)
        return self.refused is None

    def turn(self):
        """The report of one turn, of all its processes together; None where one failed."""
        reports = self._results([pool.submit(turn) for pool in self.pools])
        if not reports:
            return None
        sums = {
            key: sum(report[key] for report in reports) for key in ("cpu", "cpu_of_turn", "peak_mb")
        }
        wall = max(report["wall"] for report in reports)
        return {"images": wall * sum(map(rate, reports)), "wall": wall, **sums}

    def _results(self, tasks):
        """What tasks returned; nothing where one failed, and then the processes are stopped."""
        try:
            return [task.result() for task in tasks]
        except Exception as error:  # this side's row says so; the others go on
            known = isinstance(error, UserError)
            self.refused = str(error) if known else f"failed: {error!r}"
            print(
                f"  no {self.variant}: {self.refused}{'' if known else error.__cause__ or ''}",
                file=sys.stderr,
            )
            self.stop()
            return []

    def stop(self):
        for pool in self.pools:
            pool.shutdown()
        self.pools = []


class Rounds(NamedTuple):
    """The rounds of a group of sides; `reports` are those of the undisturbed rounds, of all where every round was disturbed."""

    sides: list
    reports: list  # of {side: report}
    undisturbed: int
    disturbed: int


def take_turns(title, sides, options, stay=True):
    """Let every side have its turn in each of `options.rounds` undisturbed rounds.

    It gives up after twice as many disturbed rounds, and begins no further round after `options.minutes`.

    Args:
        stay: keep the processes between the rounds; otherwise only one runs at a time.
    """
    print(
        f"{title}, {sides[0].spec.network}: {', '.join(side.variant for side in sides)}",
        file=sys.stderr,
    )
    undisturbed, disturbed = [], []
    deadline = time.monotonic() + 60 * options.minutes
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.callback(side.stop)
        for side in sides if stay and options.gpu else ():
            side.launch()  # all at once: most of the time goes into importing and compiling
        for side in sides if stay else ():
            side.start()
        while len(undisturbed) < options.rounds and len(disturbed) < 2 * options.rounds:
            done = len(undisturbed) + len(disturbed)
            first = done % len(sides)
            reports, others = one_round(sides[first:] + sides[:first], stay)
            if not reports:
                break
            (undisturbed if others <= DISTURBED else disturbed).append(reports)
            print(f"  round {done + 1}: others kept {others:.2f} processors busy", file=sys.stderr)
            if time.monotonic() > deadline:
                break
    return Rounds(sides, undisturbed or disturbed, len(undisturbed), len(disturbed))


def one_round(sides, stay):
    """({side: report}, processors that other programs kept busy in the most disturbed turn)."""
    reports, most = {}, 0.0
    for side in sides:
        if side.start():
            before = other_load.work()
            if report := side.turn():
                reports[side] = report
                most = max(most, other_load.others(before, report["cpu_of_turn"]))
            if not stay:
                side.stop()
    return reports, most
