"""Two proofs: kill runs at random moments, and start one run twice at the same moment.

    python tests/proofs/prove.py --kills 200 --races 200

Kills: each part of a run is a process of its own, ended by SIGKILL in the middle of a training
step, of evaluation, of writing metrics, run.json or a checkpoint; then the same run is started
again, until it is finished. All seven attentions take part, with loader workers and without, with
checkpoints after every step, every fourth, every epoch. Compared with runs that nobody disturbed
are the weights and momenta, every line of metrics.jsonl but wall time, and run.json's result.

Races: of two processes exactly one has to train. The other one says who does and exits with 3, or
comes so late that it finds the run finished and exits with 0. In every third race the directory has
the lock of an owner that was killed.

Exit code 1 if a byte differs, or a race ends in any other way. The setting is tiny.py; train.py
runs in it.
"""

import argparse
import itertools
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "helpers"),
    str(Path(__file__).resolve().parents[2]),
]
import tiny
from tiny import compare_runs, directory_of

import lcm.runs.run
import train
from lcm.errors import OwnedElsewhere
from lcm.training import checkpoint, log

STEPS = {"training": "train", "evaluation": "test"}
PLACES = {
    "metrics": (log.RunLog, "append"),
    "checkpoint": (checkpoint, "save"),
    "run.json": (lcm.runs.run, "write_state"),
}
PHASES = (*STEPS, *PLACES)


def killed_in(phase, call, delay, group):
    """A `prepare`: SIGKILL comes `delay` seconds after a process begins call `call` of a phase.

    `group`: its loader workers are killed with it; otherwise they are left behind.
    """

    def kill_soon():
        kill = (lambda: os.killpg(0, signal.SIGKILL)) if group else tiny.die
        killer = threading.Timer(delay, kill)
        killer.daemon = True  # a run that is finished before ends as finished
        killer.start()

    if phase in STEPS:
        return tiny.after_step(max(call - 1, 1), kill_soon, STEPS[phase])
    holder, name = PLACES[phase]
    original, calls = getattr(holder, name), itertools.count(1)

    def called(*args, **keys):
        if next(calls) == call:
            kill_soon()
        return original(*args, **keys)

    return lambda: setattr(holder, name, called)


def train_killed(folder, config, kills, dice):
    """Train a run to its end, killed so many times at most.

    Returns the Counter of the phases in which it was.
    """
    hits = Counter()
    for number in range(kills + 1):
        every, workers = dice.choice(("1 steps", "4 steps", "epoch")), dice.choice((0,) * 9 + (2,))
        part = config | {
            "checkpoint": {"every": every},
            "data": config["data"] | {"workers": workers},
        }
        phase = dice.choice(PHASES)
        delay = dice.choice((0, dice.expovariate(200), dice.uniform(0, 0.1)))
        call = dice.randint(1, 6 if phase == "training" else 3)
        prepare = killed_in(phase, call, delay, group=dice.random() < 0.5)
        ended = tiny.run(folder, part, prepare if number < kills else None)
        if ended.code == 0:
            return hits
        if ended.code != -signal.SIGKILL:
            raise RuntimeError(
                f"a process ended by itself with exit code {ended.code}:\n{ended.out}{ended.err}"
            )
        hits[phase] += 1


def resume(folder, kills, seed):
    """The proof, in `folder`.

    Returns (Counter of the phases in which runs were killed, differences).
    """
    tiny.use(folder)
    references = [
        tiny.compose(f"attention={name}", f"seed={seed}", f"runs={folder}/0", *tiny.PHOTOGRAPHS)
        for name in tiny.ATTENTIONS
    ]
    tiny.warm_up(folder)
    dice, hits, differences = random.Random(seed), Counter(), []
    for number in itertools.count(len(references)):
        if hits.total() == kills:
            return hits, differences
        reference = references[number % len(references)]
        train_killed(folder, reference, 0, dice)  # once: afterwards it is finished
        config = reference | {"runs": f"{folder}/{number}"}
        hits += train_killed(folder, config, min(dice.randint(1, 4), kills - hits.total()), dice)
        differences += compare_runs(directory_of(reference), directory_of(config))


def contend(config, shared, own):
    """Wait for the start, then train as train.py does; byte `own` of `shared` counts trainings."""
    original = train.fit

    def counted(*args):
        shared[own] += 1
        return original(*args)

    train.fit = counted
    while not shared[0]:
        pass
    tiny.train_as_main(config)


def race(folder, config, number):
    """One race. Returns (how it ended, whether that is as it should be)."""
    dice = random.Random(number)
    folder = folder / str(number)
    folder.mkdir(parents=True)
    config = config | {"runs": str(folder)}
    if number % 3 == 0:
        leave_a_lock(folder, config)
    shared = mmap.mmap(-1, 3)
    first, second = (
        tiny.Process(folder, contend, config, shared, own, name=f"process{own}") for own in (1, 2)
    )
    shared[0] = 1
    if number % 2:  # not quite at the same moment
        os.kill(second.pid, signal.SIGSTOP)
        time.sleep(dice.expovariate(10))
        os.kill(second.pid, signal.SIGCONT)
    ends = [(first.wait(), first.pid), (second.wait(), second.pid)]
    shutil.rmtree(folder)
    (won, winner), (lost, _) = ends if shared[1] else reversed(ends)
    if shared[1] + shared[2] == 1 and won.code == 0:
        if lost.code == OwnedElsewhere.exit_code and f"by process {winner} on " in lost.err:
            return "one trained, the other named its owner and left", True
        if lost.code == 0 and "finished" in lost.out:
            return "one trained, the other came when it was finished", True
    return f"trained {shared[1]} and {shared[2]} times: {ends}", False


def leave_a_lock(folder, config):
    """Train one step, and be killed."""
    killed = tiny.after_step(1, tiny.die)
    tiny.Process(folder, tiny.train_as_main, config, killed, name="dead").wait()
    if not (directory_of(config) / "owner.lock").read_text().startswith("process "):
        raise RuntimeError("the killed owner left no lock")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=200, help="how many processes to kill (default: 200)")
    add("--races", type=int, default=200, help="how many runs to start twice (default: 200)")
    add("--seed", type=int, default=0, help="of the killed runs and of the moments (default: 0)")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # see pytest_configure in tests/conftest.py
    folder = Path(tempfile.mkdtemp(prefix="prove-"))
    hits, differences = resume(folder, options.kills, options.seed)
    for phase in PHASES:
        print(f"{hits[phase]:6} kills in {phase}")
    print(f"{hits.total()} kills, {len(differences)} differences", *differences[:20], sep="\n")
    config = tiny.compose("attention=none", "schedule.epochs=1")
    results = [race(folder / "races", config, number) for number in range(options.races)]
    for words, count in Counter(words for words, _ in results).most_common():
        print(f"{count:6} {words}")
    good = sum(fine for _, fine in results)
    print(f"{good} of {options.races} races: exactly one trained")
    if differences or good < options.races:
        print(f"kept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
