"""Disturb sweeps: kill them, and let several share a folder; every run has to be trained once, to the same bytes.

    python tests/proofs/prove_sweep.py                  # both proofs, in the setting of tiny.py
    python tests/proofs/prove_sweep.py --kills 20 --seed 1

Killed: a sweep of 12 runs gets SIGKILL, with all its processes, 5 times at random moments, and is started again each time.
Shared: 4 processes get the same 40 runs on one folder, once undisturbed, once with one of the processes killed in the middle of
a run. Exit code 1 if a byte differs, a run was trained twice, touched after it was finished, or left out.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "helpers"), str(Path(__file__).resolve().parents[2])]
import prove_resume
import tiny

from lcm import cli as launch
from lcm.errors import FINISHED, OwnedElsewhere
from lcm.runs.standing import LOG_PART, count, standing_of

ALWAYS = ["threads=1", "device=cpu", "tensorboard=false", "progress=lines"]
KILLED = ["attention=none,se,lcm1,lcm2", "seed=0,1,2"]  # 12 runs
SHARED = ["attention=none,se,lcm1,lcm2", "seed=range(10)"]  # 40 runs


def start(folder, runs, grid, name="sweep"):
    """Start `python train.py -m GRID runs=RUNS` in a process of its own, forked from this one."""

    def main():
        import train

        sys.argv = ["train.py", "--config-path", str(folder / "configs"), "-m", *ALWAYS, *grid, f"runs={runs}"]
        launch.main(train.main)

    return tiny.Process(folder, main, name=name)


def runs_in(runs):
    """The run directories of a folder, by their path in it."""
    return {str(file.parent.relative_to(runs)): file.parent for file in sorted(runs.rglob("run.json"))}


def finished_in(runs):
    """{run: when its files were last touched} of the finished runs."""
    finished = {name: path for name, path in runs_in(runs).items() if standing_of(path).state == "finished"}
    return {name: max(file.stat().st_mtime_ns for file in path.iterdir()) for name, path in finished.items()}


def parts(runs):
    """{run: the processes that trained it, in order}, from the log of each; who came too late leaves a part without a network."""
    logs = {name: (path / "log.txt").read_text() for name, path in runs_in(runs).items()}
    return {
        name: [part.partition("process ")[2].split()[0] for part in log.split(LOG_PART) if "\nnetwork " in part]
        for name, log in logs.items()
    }


def differences(one, other):
    """What differs between two folders of runs: lines of words."""
    here, there = runs_in(one), runs_in(other)
    found = [f"{name}: only in one of {one} and {other}" for name in {*here} ^ {*there}]
    for name in {*here} & {*there}:
        found += prove_resume.compare_runs(here[name], there[name])
    return found


def prove_kills(folder, kills, dice):
    """Kill a sweep of 12 runs again and again. Returns the problems, as lines."""
    begun = time.monotonic()
    ended = start(folder, folder / "undisturbed", KILLED).wait(1200)
    expected, problems = time.monotonic() - begun, []
    if ended.code != FINISHED:
        return [f"the undisturbed sweep ended with {ended.code}: {ended.err}"]
    runs, touched, states = folder / "killed", {}, []
    for _ in range(kills):
        process = start(folder, runs, KILLED)
        while not process.poll() and not any(str(process.pid) in trainers for trainers in parts(runs).values()):
            time.sleep(0.01)
        time.sleep(dice.uniform(0, expected / (kills + 1)))
        if process.ended or process.poll():
            problems.append("the sweep had ended before all kills: take more runs, or fewer kills")
            break
        process.kill(group=True)
        now = finished_in(runs)
        problems += [f"{name}: touched after it was finished" for name in touched if touched[name] != now.get(name)]
        touched = now
        states.append(str(len(now)))
    ended = start(folder, runs, KILLED).wait(1200)
    if ended.code != FINISHED:
        problems.append(f"the sweep ended with {ended.code}: {ended.err}")
    now = finished_in(runs)
    problems += [f"{name}: touched after it was finished" for name in touched if touched[name] != now.get(name)]
    problems += differences(folder / "undisturbed", runs)
    print(f"killed: 12 runs, {len(states)} kills ({', '.join(states)} runs finished at each), "
          f"{sum(map(len, parts(runs).values()))} parts; {len(now)} finished, {len(problems)} problems; "
          f"one sweep without a kill {expected:.0f} s, all together {time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    return problems


def prove_sharing(folder, processes, kill, dice):
    """Let several processes share 40 runs, one of them killed where `kill`. Returns the problems, as lines."""
    begun, runs = time.monotonic(), folder / ("bereft" if kill else "shared")
    sweeps = [start(folder, runs, SHARED, name=f"sweep{number}") for number in range(processes)]
    problems, victim, left = [], None, sweeps
    if kill:
        victim, left = sweeps[0], sweeps[1:]
        while not any(str(victim.pid) in trainers for trainers in parts(runs).values()) or dice.random() < 0.9:
            time.sleep(0.05)
        victim.kill(group=True)
    codes = [sweep.wait(1200).code for sweep in left]
    if not set(codes) <= {FINISHED, OwnedElsewhere.exit_code} or FINISHED not in codes:
        problems.append(f"exit codes {codes}: {[sweep.ended.err for sweep in left]}")
    trainers = parts(runs)
    if len(trainers) != 40 or len(finished_in(runs)) != 40:
        problems.append(f"{count([standing_of(path) for path in runs_in(runs).values()])}, of 40")
    for name, owners in trainers.items():
        taken_over = victim and owners[0] == str(victim.pid) and len(owners) == 2
        if len(owners) != 1 and not taken_over:
            problems.append(f"{name}: trained by {owners}")
    over = [name for name, owners in trainers.items() if len(owners) == 2]
    if len(over) > 1:
        problems.append(f"the killed process had one run in progress, but these were taken over: {over}")
    shares = sorted(Counter(owners[-1] for owners in trainers.values()).values(), reverse=True)
    print(f"shared: 40 runs, {processes} processes{', one killed' if kill else ''}; exit codes {codes}, runs of each {shares}, "
          f"{len(over)} taken over, {len(problems)} problems; {time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    return problems


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="of the sweep of 12 runs (default: 5)")
    parser.add_argument("--processes", type=int, default=4, help="that share 40 runs (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="prove-sweep-"))
    tiny.use(folder)
    tiny.warm_up(folder)
    dice = random.Random(options.seed)
    problems = prove_kills(folder, options.kills, dice)
    for kill in (False, True):
        problems += prove_sharing(folder, options.processes, kill, dice)
    problems += differences(folder / "shared", folder / "bereft")
    for problem in problems[:20]:
        print(f"  {problem}")
    if problems:
        print(f"kept for inspection: {folder}")
        return 1
    print("every run trained once, 0 differing bytes")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
