"""Kill runs at random moments, continue them, and compare every byte with runs that nobody disturbed.

    python tests/proofs/prove_resume.py --kills 200

Each part of a run is a process of its own, ended by SIGKILL in the middle of a training step, of evaluation, of writing metrics,
run.json or a checkpoint, or of collecting results and writing tables; then the same run is started again, until it is finished.
All seven attentions take part, with loader workers and without, with checkpoints after every step, every fourth, every epoch.
Compared are the weights and momenta, every line of metrics.jsonl but wall time, run.json's result, runs.csv, and the tables.
Exit code 1 if a byte differs. The setting is tiny.py; what is run is train.py, scripts/collect.py and scripts/tables.py.
"""

import argparse
import contextlib
import functools
import json
import mmap
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

from lcm.reporting.records import read_record
from lcm.runs.directory import run_directory

TRAINING = ("training", "evaluation", "metrics", "checkpoint", "run.json")
TABLES = ("collecting", "tables")
PHASES = ("starting", *TRAINING, *TABLES)
WALL_TIME = ("seconds", "images_per_second", "start", "end", "commit", "dirty")  # and a commit made while this runs
KILLS_A_ROUND = 28


class Phase:
    """What a process is doing, in a byte that its parent can read."""

    def __init__(self):
        self.byte = mmap.mmap(-1, 1)

    def get(self):
        return PHASES[self.byte[0]]

    @contextlib.contextmanager
    def of(self, name):
        before, self.byte[0] = self.byte[0], PHASES.index(name)
        try:
            yield
        finally:
            self.byte[0] = before

    def mark(self, holder, function, name):
        """Let the byte say `name` while holder.function runs."""
        setattr(holder, function, self.of(name)(getattr(holder, function)))


def train_one(config, phase):
    """What `python train.py` does after composing, with the phases marked; how often it saves and its workers are random."""
    import numpy
    import torch

    import lcm.runs.state
    from lcm.training import checkpoint, epochs, log

    phase.mark(epochs, "train_epoch", "training")
    phase.mark(epochs, "evaluate", "evaluation")
    phase.mark(log.RunLog, "append", "metrics")
    phase.mark(checkpoint, "save", "checkpoint")
    phase.mark(lcm.runs.state, "write_state", "run.json")
    chance = int.from_bytes(os.urandom(4), "little")  # nothing may come from the global generators
    torch.manual_seed(chance)
    numpy.random.seed(chance)
    random.seed(chance)
    every, workers = random.choice(("1 steps", "4 steps", "epoch")), random.choice((0,) * 9 + (2,))
    tiny.train_as_main(config | {"checkpoint": {"every": every}, "data": config["data"] | {"workers": workers}})


def make_tables(folder, phase):
    """python scripts/collect.py && python scripts/tables.py --schedule digits"""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    for file in ("paper.csv", "claims.yaml"):
        shutil.copy(tiny.ROOT / "results" / file, results)
    for name, script, arguments in (
        ("collecting", "collect.py", [str(folder / "runs")]),
        ("tables", "tables.py", ["--schedule", "digits"]),
    ):
        with phase.of(name):
            sys.argv = [script, *arguments, "--results", str(results)]
            runpy.run_path(str(tiny.ROOT / "scripts" / script), run_name="__main__")


def kill_somewhere(process, phase, phases, expected, dice):
    """SIGKILL a process at a random moment. Returns the phase it was in, None where it had ended before.

    Half of the moments are uniform over the `expected` seconds, half are in one of the `phases`, so that those that take a
    millisecond are hit too. Loader workers are killed with it, or left behind, at random.
    """
    begun, wanted, entries, before = time.monotonic(), None, 0, None
    moment = begun + dice.uniform(0, expected)
    if dice.random() < 0.5:
        wanted, entry = dice.choice(phases), dice.randint(1, 3)
        moment = begun + 4 * expected + 10  # if it comes no more
    while time.monotonic() < moment:
        if has_ended(process):
            return None
        now = phase.get()
        entries += now == wanted != before
        before = now
        if wanted and entries == entry:
            wanted, moment = None, time.monotonic() + dice.choice((0, dice.expovariate(200), dice.uniform(0, 0.1)))
        time.sleep(0.0002)
    if has_ended(process):
        return None
    hit = phase.get()
    ended = process.kill(group=dice.random() < 0.5)
    return hit if ended.code == -signal.SIGKILL else None


def has_ended(process):
    """Whether a process has ended. Raises RuntimeError where it failed by itself."""
    ended = process.poll()
    if ended and ended.code:
        raise RuntimeError(f"a process ended by itself with exit code {ended.code}:\n{ended.out}{ended.err}")
    return ended is not None


def one_round(folder, configs, kills, expected, dice):
    """Train each config below `folder`/runs and write the tables, with at most so many kills.

    Returns (Counter of the phases hit, {name: seconds that its processes took}).
    """
    (folder / "runs").mkdir(parents=True)
    jobs = {name: functools.partial(train_one, c | {"runs": str(folder / "runs")}) for name, c in configs.items()}
    jobs["tables"] = functools.partial(make_tables, folder)
    shares, hits, seconds = Counter(dice.choices(list(jobs), k=kills)), Counter(), {}
    for name, job in jobs.items():
        begun, left = time.monotonic(), shares[name]
        while True:
            phase = Phase()
            process = tiny.Process(folder, job, phase, name=name)
            phases = TABLES if name == "tables" else TRAINING
            hit = kill_somewhere(process, phase, phases, expected[name], dice) if left else None
            if hit is None:
                while not process.ended and not has_ended(process):
                    time.sleep(0.005)
                break
            hits[hit] += 1
            left -= 1
        seconds[name] = time.monotonic() - begun
    return hits, seconds


def run_content(directory):
    """{what: its text or bytes} of everything that two equal runs have in common."""
    from lcm.training import checkpoint

    saved = checkpoint.read(directory / checkpoint.NAME)
    tensors = {f"{part} {name}": tensor for part in ("model", "momentum") for name, tensor in saved[part].items()}
    found = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    found["position"] = repr([saved[key] for key in ("epoch", "index", "config_hash")])
    for number, line in enumerate((directory / "metrics.jsonl").read_text().splitlines(), 1):
        found[f"metrics.jsonl line {number}"] = without_wall_time(json.loads(line))
    state = json.loads((directory / "run.json").read_text())
    for key in ("state", "message", "result", "run", "params", "macs", "gfloat", "data_fingerprint", "threads"):
        found[f"run.json {key}"] = json.dumps(state[key])
    return found


def results_content(results):
    """{file: its text without wall time} of a folder of results."""
    found = {}
    for file in results.rglob("*"):
        if not file.is_file() or file.name.startswith("."):  # what a killed writer left behind
            continue
        text = file.read_text(errors="surrogateescape")
        if file.name == "runs.csv":
            import pandas

            text = pandas.read_csv(file, dtype=str).drop(columns=list(WALL_TIME), errors="ignore").to_csv()
        elif file.suffix == ".jsonl":
            run, epochs = read_record(file)
            config = run.pop("config")
            config["checkpoint"] = config["data"]["workers"] = None
            text = "\n".join(without_wall_time(part) for part in (run, config, epochs))
        found[str(file.relative_to(results))] = re.sub(r"[\d.]+ hours", "hours", text)
    return found


def without_wall_time(values):
    return json.dumps({key: value for key, value in values.items() if key not in WALL_TIME})


def compare(content, one, other):
    """What differs between two folders, by `run_content` or `results_content`: a line each."""
    here, there = content(one), content(other)
    return [f"{other}: {what}" for what in sorted({*here, *there}) if here.get(what) != there.get(what)]


compare_runs, compare_results = (functools.partial(compare, content) for content in (run_content, results_content))


def prove(folder, kills, seed):
    """The proof, in `folder`. Returns (Counter of the phases hit, differences)."""
    tiny.use(folder)
    configs = {name: tiny.compose(f"attention={name}", f"seed={seed}") for name in tiny.ATTENTIONS}
    tiny.warm_up(folder)
    import lcm.reporting.claims
    import lcm.reporting.tables  # noqa: F401  for the processes to come

    reference, dice, hits, differences, number = folder / "reference", random.Random(seed), Counter(), [], 0
    _, expected = one_round(reference, configs, 0, None, dice)
    while hits.total() < kills:
        number += 1
        round_folder = folder / f"round{number}"
        hits += one_round(round_folder, configs, min(KILLS_A_ROUND, kills - hits.total()), expected, dice)[0]
        for config in configs.values():
            one, other = (run_directory(config | {"runs": str(place / "runs")}) for place in (reference, round_folder))
            differences += compare_runs(one, other)
        differences += compare_results(reference / "results", round_folder / "results")
        print(f"round {number}: {hits.total()} kills, {len(differences)} differences", flush=True)
    return hits, differences


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs and of the moments (default: 0)")
    options = parser.parse_args(arguments)
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="prove-resume-"))
    hits, differences = prove(folder, options.kills, options.seed)
    for phase in PHASES:
        print(f"{hits[phase]:6} kills while {phase}")
    print(f"{hits.total()} kills, {len(differences)} differences, {time.monotonic() - begun:.0f} s")
    if differences:
        print("\n".join(differences[:20]), f"\nkept for inspection: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
