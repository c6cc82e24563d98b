"""The first hour with a GPU: tests, same bits, speed, memory, several runs at once, a killed run, then Table 2.

    python scripts/first_gpu_hour                          # all parts; the same command continues where it stopped
    python scripts/first_gpu_hour --parts weights,resumed  # these again
    python scripts/first_gpu_hour data.root=/datasets      # overrides of train.py, for Table 2
    python scripts/first_gpu_hour --rehearse               # on a CPU, in a minute, with tiny settings

Each part takes --minutes at most. When it ends, its result is written to results/first-gpu-hour/NN-part.json, its output to
NN-part.log. docs/gpu.md says what each result means. Exit codes: 0 all parts done, 1 one failed, 75 one ran out of time.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package `first_gpu_hour` is when this folder is run

from first_gpu_hour.parts import PARTS, ROOT, Failed, OutOfTime

from lcm.errors import Stopped, UserError, exit_on_user_error
from lcm.files import write_atomically


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of train.py, for Table 2")
    parser.add_argument("--parts", help=f"these again, with commas, of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=8, help="of each part, at most (default: %(default)g)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny settings, into a temporary folder")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/first-gpu-hour")
    options = parser.parse_args(arguments)
    options.again = options.parts.split(",") if options.parts else []
    if unknown := [part for part in options.again if part not in PARTS]:
        raise UserError(f"--parts {unknown[0]}: there is no such part; choose from {', '.join(PARTS)}")
    default = Path(tempfile.mkdtemp()) if options.rehearse else ROOT / "results" / "first-gpu-hour"
    options.out = (options.out or default).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def carry_out(name, options):
    """Run one part and write its result. Returns its state: done, failed or stopped (out of time)."""
    path = options.out / f"{list(PARTS).index(name) + 1:02}-{name}.json"
    if not options.again and path.exists() and json.loads(path.read_text())["state"] == "done":
        print(f"{name:8} done already", flush=True)
        return "done"
    options.log, started = path.with_suffix(".log"), time.monotonic()
    options.log.unlink(missing_ok=True)
    options.deadline = started + 60 * options.minutes
    try:
        state, details = "done", PARTS[name](options)
    except Failed as error:
        state, details = "failed", {"reason": str(error)}
    except OutOfTime:
        reason = f"out of time after {options.minutes:g} minutes; the same command continues"
        state, details = "stopped", {"reason": reason}
    result = {"part": name, "state": state, "seconds": round(time.monotonic() - started, 1), **details}
    write_atomically(path, f"{json.dumps(result, indent=2)}\n".encode())
    print(f"{name:8} {state} after {result['seconds']:.0f} s  {details.get('reason', '')}", flush=True)
    return state


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    states = [carry_out(name, options) for name in PARTS if not options.again or name in options.again]
    print(f"results: {options.out}")
    return 1 if "failed" in states else Stopped.exit_code if "stopped" in states else 0


if __name__ == "__main__":
    sys.exit(main())
