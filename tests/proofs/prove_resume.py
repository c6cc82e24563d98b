"""Kill runs at random moments, continue them, and compare every byte with runs that nobody
disturbed.

    python tests/proofs/prove_resume.py --kills 200

Each part of a run is a process of its own, ended by SIGKILL in the middle of a training step, of
evaluation, of writing metrics, run.json or a checkpoint; then the same run is started again, until
it is finished. All seven attentions take part, with loader workers and without, with checkpoints
after every step, every fourth, every epoch. Compared are the weights and momenta, every line of
metrics.jsonl but wall time, and run.json's result. Exit code 1 if a byte differs. The setting is
tiny.py; train.py runs in it.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "helpers"),
    str(Path(__file__).resolve().parents[2]),
]
import tiny
from tiny import compare_runs, directory_of

import lcm.runs.run
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


def train(folder, config, kills, dice):
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


def prove(folder, kills, seed):
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
        train(folder, reference, 0, dice)  # once: afterwards it is finished
        config = reference | {"runs": f"{folder}/{number}"}
        hits += train(folder, config, min(dice.randint(1, 4), kills - hits.total()), dice)
        differences += compare_runs(directory_of(reference), directory_of(config))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=200, help="how many processes to kill (default: 200)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the runs and of the moments (default: 0)"
    )
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # see pytest_configure in tests/conftest.py
    folder = Path(tempfile.mkdtemp(prefix="prove-resume-"))
    hits, differences = prove(folder, options.kills, options.seed)
    for phase in PHASES:
        print(f"{hits[phase]:6} kills in {phase}")
    print(f"{hits.total()} kills, {len(differences)} differences")
    if differences:
        print("\n".join(differences[:20]), f"\nkept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
