"""The first hour with a GPU: its tests, speed, memory, several runs at once, then Table 2.

    python scripts/first_gpu_hour                      # all parts; the same command continues where it stopped
    python scripts/first_gpu_hour --parts tests,step   # these again
    python scripts/first_gpu_hour data.root=/datasets  # overrides of train.py, for Table 2
    python scripts/first_gpu_hour --rehearse           # on a CPU, in a minute, with tiny settings

Each part is a command that takes --minutes at most. When it ends, its result is written to results/first-gpu-hour/NN-part.json,
its output to NN-part.log. docs/gpu.md says what each result means. Exit codes: 0 all parts done, 1 one failed, 75 one ran out of
time.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lcm.errors import Stopped, UserError, exit_on_user_error
from lcm.files import write

ROOT = Path(__file__).parents[2]
SECONDS_TO_SAVE = 60  # from SIGTERM to SIGKILL
PARTS = {  # each a command of Python
    "tests": ["-m", "pytest", "-m", "gpu", "-n", "0", "-q"],
    **{
        part: ["scripts/benchmark", "--gpu", "--parts", part]
        for part in ("step", "epoch", "memory", "packed")
    },
    "table2": [
        "train.py",
        "experiment=table2",
        "hydra/launcher=parallel",
        "hydra.launcher.n_jobs=4",
    ],
}
PARSE = "import sys; sys.path.insert(0, 'scripts'); from benchmark.__main__ import parse; parse(sys.argv[1:])"
REHEARSAL = {  # the GPU's tests are skipped, the benchmark's command lines are checked alone, a small sweep trains
    "tests": [*PARTS["tests"], "tests/training/test_gpu.py"],
    **{part: ["-c", PARSE, *PARTS[part][1:]] for part in ("step", "epoch", "memory", "packed")},
    "table2": [
        *(
            "train.py",
            "-m",
            "data=digits",
            "model.layers=8",
            "attention=none,lcm2",
            "schedule.epochs=1",
            "device=cpu",
        ),
        *("tensorboard=false", "hydra/launcher=parallel", "hydra.launcher.n_jobs=2"),
    ],
}


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, for Table 2")
    parser.add_argument("--parts", help=f"these again, with commas, of {', '.join(PARTS)}")
    parser.add_argument(
        "--minutes", type=float, default=8, help="of each part, at most (default: %(default)g)"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="on a CPU, with tiny settings, into a temporary folder",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results/first-gpu-hour"
    )
    options = parser.parse_args(arguments)
    options.again = options.parts.split(",") if options.parts else []
    if unknown := [part for part in options.again if part not in PARTS]:
        raise UserError(
            f"--parts {unknown[0]}: there is no such part; choose from {', '.join(PARTS)}"
        )
    default = Path(tempfile.mkdtemp()) if options.rehearse else ROOT / "results" / "first-gpu-hour"
    options.out = (options.out or default).resolve()
    options.overrides += [f"runs={options.out}/runs"] * options.rehearse
    return options


def run(command, log, seconds):
    """Run Python with these arguments, its output in a log file. Returns its exit code, None where it had to be stopped.

    A command that is out of time, or interrupted by Ctrl-C, gets SIGTERM and some time to save.
    """
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            start_new_session=True,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_SAVE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def carry_out(name, options):
    """Run one part and write its result. Returns its state: done, failed or stopped (out of time)."""
    file = options.out / f"{list(PARTS).index(name) + 1:02}-{name}.json"
    if not options.again and file.exists() and json.loads(file.read_text())["state"] == "done":
        print(f"{name:8} done already", flush=True)
        return "done"
    log, started = file.with_suffix(".log"), time.monotonic()
    code = run(
        (REHEARSAL if options.rehearse else PARTS)[name] + options.overrides * (name == "table2"),
        log,
        60 * options.minutes,
    )
    result = {
        "part": name,
        "state": "failed" if code else "done",
        "seconds": round(time.monotonic() - started, 1),
    }
    if code is None:
        reason = f"out of time after {options.minutes:g} minutes; the same command continues"
        result |= {"state": "stopped", "reason": reason}
    elif code:
        last = log.read_text().splitlines()[-1:] or [""]
        result["reason"] = f"exit code {code}: {last[0]} (see {log.name})"
    write(file, f"{json.dumps(result, indent=2)}\n")
    print(
        f"{name:8} {result['state']} after {result['seconds']:.0f} s  {result.get('reason', '')}",
        flush=True,
    )
    return result["state"]


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    states = [
        carry_out(name, options) for name in PARTS if not options.again or name in options.again
    ]
    print(f"results: {options.out}")
    return 1 if "failed" in states else Stopped.exit_code if "stopped" in states else 0


if __name__ == "__main__":
    sys.exit(main())
