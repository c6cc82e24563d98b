"""Let two processes start the same run at the same moment, many times: exactly one has to train it.

    python tests/proofs/prove_owner.py --races 200

The other one says who does and exits with 3, or comes so late that it finds the run finished and
exits with 0. In every third race the directory has the lock of an owner that was killed. Exit code
1 if a race ends in any other way. See tiny.py.
"""

import argparse
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "helpers"),
    str(Path(__file__).resolve().parents[2]),
]
import tiny

from lcm.errors import OwnedElsewhere
from lcm.runs.directory import run_directory


def contend(config, shared, own):
    """Wait for the start, then train as train.py does; byte `own` of `shared` counts trainings."""
    import train

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
    folder.mkdir()
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
    if not (run_directory(config) / "owner.lock").read_text().startswith("process "):
        raise RuntimeError("the killed owner left no lock")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--races", type=int, default=200, help="how many (default: 200)")
    races = parser.parse_args().races
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # see pytest_configure in tests/conftest.py
    with tempfile.TemporaryDirectory(prefix="prove-owner-") as folder:
        tiny.use(folder)
        config = tiny.compose("attention=none", "schedule.epochs=1")
        tiny.warm_up(folder)
        results = [race(Path(folder), config, number) for number in range(races)]
    for words, count in Counter(words for words, _ in results).most_common():
        print(f"{count:6} {words}")
    good = sum(fine for _, fine in results)
    print(f"{good} of {races} races: exactly one trained")
    return int(good < races)


if __name__ == "__main__":
    sys.exit(main())
