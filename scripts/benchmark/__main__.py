"""This project's speed beside a plain PyTorch training loop, measured in turns, in one run, on this machine.

    python scripts/benchmark                                  # all parts; about an hour on two cores
    python scripts/benchmark --parts evaluation               # that part again; results/benchmark.csv keeps the others
    python scripts/benchmark --quick --parts step --out FILE  # shows that it works
    python scripts/benchmark --gpu --parts epoch              # on a GPU, into results/benchmark-gpu.csv

Each side is a process of its own with the same number of threads, which works for some seconds at each turn. A round of turns
during which other programs kept a tenth of a processor busy is thrown away, counted and repeated. Figures are medians over the
rounds; a ratio is taken within each round first. The images are random bytes in CIFAR's shape. docs/benchmark.md has the details.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # where the package `benchmark` is when this folder is run

from benchmark.parts import GPU_PARTS, PARTS
from benchmark.startup import ROOT
from benchmark.table import Table

from lcm.config.compose import choices, load
from lcm.errors import UserError, exit_on_user_error

GPU_MINUTES = 7  # in which the rounds of a part begin; it ends within eight
STEPS, GPU_STEPS = (
    20,
    200,
)  # of an epoch; on a GPU, which is waited for after them, of each unit of work


def parse(arguments):
    """The command line as options. Raises UserError for what it cannot mean."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--parts",
        help=f"some of {', '.join(PARTS)}; with --gpu of {', '.join(GPU_PARTS)} (default: all)",
    )
    add(
        "--networks",
        default="resnet20,densenet40",
        help="networks for 32x32 images (default: %(default)s)",
    )
    add("--rounds", type=int, help="undisturbed rounds (default: 5, on a GPU 3)")
    add(
        "--threads",
        type=int,
        help="CPU threads (default: the processors that this process may use)",
    )
    add(
        "--quick",
        action="store_true",
        help="one round of short turns: shows that it works, measures nothing",
    )
    add(
        "--out",
        metavar="FILE",
        help="default: results/benchmark.csv, with --gpu results/benchmark-gpu.csv",
    )
    add("--gpu", action="store_true", help="the parts for a GPU")
    add(
        "--device", help=argparse.SUPPRESS
    )  # of the sides: the GPU's parts can run on a CPU, in tests
    options = parser.parse_args(arguments)
    options.known = GPU_PARTS if options.gpu else PARTS
    small = [name for name in choices("model") if load("model", name)["image_size"] == 32]
    for name, known in (("parts", options.known), ("networks", small)):
        chosen = getattr(options, name)
        setattr(options, name, chosen.split(",") if chosen else list(known))
        if unknown := [word for word in getattr(options, name) if word not in known]:
            raise UserError(
                f"--{name} {unknown[0]}: there is none of that name; choose from {', '.join(known)}"
            )
    rounds, options.seconds = (
        (1, 0.1) if options.quick else (3, 2.0) if options.gpu else (5, 5.0)
    )  # of a turn
    options.rounds = rounds if options.rounds is None else options.rounds
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--rounds and --threads must be at least 1")
    options.minutes = (
        GPU_MINUTES / (2 * len(options.networks)) if options.gpu else math.inf
    )  # of a group of sides
    options.steps = 2 if options.quick else GPU_STEPS if options.gpu else STEPS
    options.out = Path(options.out or ROOT / "results" / f"benchmark{'-gpu' * options.gpu}.csv")
    if not options.out.resolve().parent.is_dir():
        raise UserError(
            f"--out {options.out}: there is no folder {options.out.resolve().parent}; make it first"
        )
    return options


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    import torch

    from lcm.training.device import available_processors, processor

    options.device = options.device or ("cuda" if options.gpu else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--gpu: torch finds no usable NVIDIA GPU or driver; leave it out for the CPU's parts"
        )
    options.threads = options.threads or available_processors()
    options.loaders = min(8, available_processors()) if options.gpu else 2
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    table, failed = (
        Table(options.out, machine=machine, torch=torch.__version__, threads=options.threads),
        0,
    )
    for part in options.parts:
        for rows in options.known[part](options):
            table.add(part, rows)
            failed += sum("failed: " in row["remark"] for row in rows)
    if failed:
        sys.exit(
            f"{failed} rows could not be measured: their remarks, and the messages above, say why"
        )
    print(f"\n{options.out} written")


if __name__ == "__main__":
    main()
