"""Kill runs at random moments, continue them, and compare every byte with runs that nobody disturbed.

    python tests/proofs/prove_resume.py --kills 200
    python tests/proofs/prove_resume.py --kills 20 --seed 1 --jobs 1

Each part of a run is a process of its own, ended by SIGKILL in the middle of a training step, of evaluation, of writing metrics,
run.json or a checkpoint, or of collecting results and writing tables; then the same run is started again, until it is through.
All seven attentions take part, with loader workers and without, with checkpoints after every step, every fourth, every epoch.
Compared are the weights and momenta, every line of metrics.jsonl but wall time, run.json's result, runs.csv, and the tables.
Exit code 1 if a byte differs. The setting is tiny.py; what is run is train.py, scripts/collect.py and scripts/tables.py.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import json
import mmap
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "helpers"), str(Path(__file__).resolve().parents[2])]
import tiny

from lcm.runs.directory import run_directory

PHASES = ("starting", "training", "evaluation", "metrics", "checkpoint", "run.json", "collecting", "tables")
WALL_TIME = ("seconds", "images_per_second", "start", "end", "commit", "dirty")  # and a commit made while this runs
KILLS_A_ROUND = 28  # 7 attentions, then two in collecting and tables


class Phase:
    """What a process is doing, in a byte that its parent can read."""

    def __init__(self):
        self.byte = mmap.mmap(-1, 1)

    def get(self):
        return PHASES[self.byte[0]]

    def set(self, name):
        self.byte[0] = PHASES.index(name)

    @contextlib.contextmanager
    def of(self, name):
        before = self.get()
        self.set(name)
        try:
            yield
        finally:
            self.set(before)

    def mark(self, holder, function, name):
        """Let the byte say `name` while holder.function runs."""
        original = getattr(holder, function)

        def marked(*args, **kwargs):
            with self.of(name):
                return original(*args, **kwargs)

        setattr(holder, function, marked)


def train_one(config, phase):
    """What `python train.py` does after composing, with the phases marked."""
    import numpy
    import torch

    import lcm.runs.state
    from lcm.training import checkpoint, log
    from lcm.training import epochs as loop

    phase.mark(loop, "train_epoch", "training")
    phase.mark(loop, "evaluate", "evaluation")
    phase.mark(log.RunLog, "append", "metrics")
    phase.mark(checkpoint, "save", "checkpoint")
    phase.mark(lcm.runs.state, "write_state", "run.json")
    chance = int.from_bytes(os.urandom(4), "little")  # nothing may come from the global generators
    torch.manual_seed(chance)
    numpy.random.seed(chance)
    random.seed(chance)
    tiny.train_as_main(config)


def make_tables(folder, phase):
    """python scripts/collect.py && python scripts/tables.py --schedule digits"""
    scripts, results = tiny.ROOT / "scripts", str(folder / "results")
    for name, arguments in (
        ("collecting", ["collect.py", str(folder / "runs"), "--results", results]),
        ("tables", ["tables.py", "--schedule", "digits", "--results", results]),
    ):
        with phase.of(name):
            sys.argv = arguments
            runpy.run_path(str(scripts / arguments[0]), run_name="__main__")


def kill_somewhere(process, phase, names, expected, dice):
    """SIGKILL a process at a random moment. Returns the phase it was in, None where it was through before.

    Half of the moments are uniform over the `expected` seconds, half lie in one of the phases `names`, so that those that take
    a millisecond are hit too. Loader workers are killed with it, or left behind, at random.
    """
    begun, wanted, entries = time.monotonic(), None, 0
    if dice.random() < 0.5:
        moment = begun + dice.uniform(0, expected)
    else:
        wanted, entry = dice.choice(names), dice.randint(1, 3)
        before, moment = None, begun + 4 * expected + 10  # if it comes no more
    while time.monotonic() < moment:
        if through(process):
            return None
        if wanted:
            now = phase.get()
            entries += now == wanted != before
            before = now
            if entries == entry:
                wanted, moment = None, time.monotonic() + dice.choice((0, dice.expovariate(200), dice.uniform(0, 0.1)))
        time.sleep(0.0002)
    if through(process):
        return None
    hit = phase.get()
    ended = process.kill(group=dice.random() < 0.5)
    return hit if ended.code == -signal.SIGKILL else None


def through(process):
    """Whether a process has ended. Raises RuntimeError where it failed by itself."""
    ended = process.poll()
    if ended and ended.code:
        raise RuntimeError(
            f"a process ended by itself with exit code {ended.code}:\n{ended.out[-2000:]}{ended.err[-2000:]}"
        )
    return ended is not None


def to_the_end(target, folder, name, args, kills, names, expected, dice):
    """Run `target` in processes, `kills` of them killed, the last one not. Returns the Counter of phases hit.

    A process that is through before its kill leaves the kill to the caller's next run.
    """
    hits = Counter()
    while True:
        phase = Phase()
        process = tiny.Process(folder, target, *args(dice), phase, name=name)
        if hits.total() == kills:
            while not through(process):
                time.sleep(0.005)
            return hits
        hit = kill_somewhere(process, phase, names, expected, dice)
        if hit is None:
            return hits
        hits[hit] += 1


def arm(folder, config, kills, expected, seed, reference=None):
    """Train the run of `config` below `folder`/runs with so many kills. Returns (phases hit, differences, runs, seconds)."""
    dice, hits, differences, runs = random.Random(seed), Counter(), [], 0
    begun = time.monotonic()
    config = config | {"runs": str(folder / "runs")}
    directory = run_directory(config)

    def args(dice):
        every = dice.choice(("1 steps", "4 steps", "epoch"))
        workers = dice.choice((0,) * 9 + (2,)) if reference else 0
        return (config | {"checkpoint": {"every": every}, "data": config["data"] | {"workers": workers}},)

    names = ("training", "evaluation", "metrics", "checkpoint", "checkpoint", "run.json")
    name = config["attention"]["name"]
    while hits.total() < kills or not runs:
        shutil.rmtree(directory, ignore_errors=True)
        hits += to_the_end(train_one, folder, name, args, kills - hits.total(), names, expected, dice)
        runs += 1
        if reference:
            differences += compare_runs(run_directory(config | {"runs": str(reference / "runs")}), directory)
    return hits, differences, runs, time.monotonic() - begun


def tables(folder, kills, expected, seed, reference=None):
    """Collect the runs below `folder` and write their tables, with so many kills; returns as `arm`."""
    dice, hits, differences, runs = random.Random(seed), Counter(), [], 0
    begun = time.monotonic()
    names = ("collecting", "tables")
    while hits.total() < kills or not runs:
        shutil.rmtree(folder / "results", ignore_errors=True)
        (folder / "results").mkdir()
        for file in ("paper.csv", "claims.yaml"):
            shutil.copy(tiny.ROOT / "results" / file, folder / "results")
        left = kills - hits.total()
        hits += to_the_end(make_tables, folder, "tables", lambda dice: (folder,), left, names, expected, dice)
        runs += 1
        if reference:
            differences += compare_results(reference / "results", folder / "results")
    return hits, differences, runs, time.monotonic() - begun


def differing(a, b):
    """Number of bytes in which two byte strings differ; what one has more counts."""
    return abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False)) if a != b else 0


def compare_runs(reference, directory):
    """[(what differs, number of bytes), ...] between two run directories, wall time apart."""
    found = [(f"{directory}: {name}", differing(one, other)) for name, one, other in pairs(reference, directory)]
    return [difference for difference in found if difference[1]]


def pairs(reference, directory):
    """(name, bytes there, bytes here) of everything that two runs have to have in common."""
    from lcm.training import checkpoint

    one, other = (checkpoint.read(folder / checkpoint.NAME) for folder in (reference, directory))
    for part in ("model", "momentum"):
        for name in sorted({*one[part], *other[part]}):
            yield (
                f"{part} {name}",
                *(saved[part][name].numpy().tobytes() if name in saved[part] else b"" for saved in (one, other)),
            )
    yield "place", *(repr([saved[key] for key in ("epoch", "index", "config_hash")]).encode() for saved in (one, other))
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (reference, directory)]
    for number in range(max(map(len, lines))):
        yield (
            f"metrics.jsonl line {number + 1}",
            *(
                json.dumps({k: v for k, v in json.loads(rows[number]).items() if k not in WALL_TIME}).encode()
                if number < len(rows)
                else b""
                for rows in lines
            ),
        )
    states = [json.loads((folder / "run.json").read_text()) for folder in (reference, directory)]
    for key in ("state", "message", "result", "run", "params", "macs", "gfloat", "data_fingerprint", "threads"):
        yield f"run.json {key}", *(json.dumps(state[key]).encode() for state in states)


def compare_results(reference, results):
    """As `compare_runs`, for two folders of results."""
    names = {f.relative_to(folder) for folder in (reference, results) for f in folder.rglob("*") if f.is_file()}
    found = []
    for name in sorted(name for name in names if not name.name.startswith(".")):  # what a killed writer left behind
        one, other = (
            without_time(folder / name) if (folder / name).exists() else b"" for folder in (reference, results)
        )
        found.append((f"{results / name}", differing(one, other)))
    return [difference for difference in found if difference[1]]


def without_time(file):
    """A file's bytes without wall time."""
    if file.name == "runs.csv":
        rows = list(csv.DictReader(file.read_text().splitlines()))
        return json.dumps([{k: v for k, v in row.items() if k not in WALL_TIME} for row in rows]).encode()
    if file.suffix == ".jsonl":
        first, *lines = file.read_text().splitlines()
        head = json.loads(first)
        kept = [i for i, column in enumerate(head["columns"]) if column not in WALL_TIME]
        run = {k: v for k, v in head["run"].items() if k not in WALL_TIME}
        run["config"] = {k: v for k, v in run["config"].items() if k != "checkpoint"} | {
            "data": {k: v for k, v in run["config"]["data"].items() if k != "workers"}
        }
        return json.dumps([run, *([json.loads(line)[i] for i in kept] for line in lines)]).encode()
    return re.sub(rb"[\d.]+ hours", b"hours", file.read_bytes())


def prove(folder, kills, seed, jobs):
    """The proof, in `folder`. Returns (phases hit, differences, number of disturbed runs)."""
    tiny.use(folder)
    configs = {name: tiny.compose(f"attention={name}", f"seed={seed}") for name in tiny.ATTENTIONS}
    tiny.warm_up(folder)
    import lcm.reporting.claims
    import lcm.reporting.tables  # noqa: F401  for the processes to come

    reference = folder / "reference"
    reference.mkdir()
    hits, differences, runs = Counter(), [], 0
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        undisturbed = [pool.submit(arm, reference, config, 0, 0, seed) for config in configs.values()]
        expected = {name: job.result()[3] for name, job in zip(configs, undisturbed, strict=True)}
        expected_tables = pool.submit(tables, reference, 0, 0, seed).result()[3]
        number = 0
        while kills:
            now, number = min(kills, KILLS_A_ROUND), number + 1
            kills -= now
            for_tables = min(2, -(-now // 14))
            shares = [(now - for_tables + i) // len(configs) for i in range(len(configs))]
            place = folder / f"round{number}"
            place.mkdir()
            arms = [
                pool.submit(arm, place, config, share, expected[name], f"{seed} {number} {name}", reference)
                for (name, config), share in zip(configs.items(), shares, strict=True)
            ]
            results = [job.result() for job in arms]
            results.append(
                pool.submit(tables, place, for_tables, expected_tables, f"{seed} {number}", reference).result()
            )
            for hit, difference, count, _ in results:
                hits, differences, runs = hits + hit, differences + difference, runs + count
            print(f"round {number}: {hits.total()} kills, {len(differences)} differences", flush=True)
    return hits, differences, runs


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs and of the moments (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="prove-resume-"))
    hits, differences, runs = prove(folder, options.kills, options.seed, options.jobs)
    for phase in PHASES:
        print(f"{hits[phase]:6} kills while {phase}")
    print(
        f"{hits.total()} kills in {runs} runs and tables, {sum(count for _, count in differences)} differing bytes, "
        f"{time.monotonic() - begun:.0f} s"
    )
    for what, count in differences[:20]:
        print(f"  {what}: {count} bytes")
    if differences:
        print(f"kept for a look: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
