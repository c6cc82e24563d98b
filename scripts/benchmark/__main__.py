"""This project's speed beside a plain PyTorch training loop, measured in turns, in one run, on this machine.

    python scripts/benchmark                                  # all parts; about an hour on two cores
    python scripts/benchmark --parts evaluation               # that part anew; results/benchmark.csv keeps the others
    python scripts/benchmark --quick --parts step --out FILE  # a first look, in minutes
    python scripts/benchmark --gpu --parts epoch              # on a GPU, into results/benchmark-gpu.csv

Each side is a process of its own with the same number of threads, which works for some seconds when it is its turn. A round
of turns during which other programs kept a tenth of a processor busy is thrown away, counted and repeated. Figures are medians
over the rounds; a ratio is taken within each round first. The images are random bytes in CIFAR's shape.

Parts and what their ratio means
  step        training steps, this project's with their batches, over the reference's on a batch at hand: images/s
  epoch       whole epochs, data and metrics included: images/s over the reference's
  attention   one training step with each attention module: its time over that of no attention
  assembly    random crop, mirror and normalisation of a batch of 64 in one process: images/s over DataLoader with PIL
  evaluation  images/s over a plain no_grad loop at its best batch size, its images at hand as tensors
  startup     from the command to the first finished step: time over that of a plain Hydra application
  memory      DenseNet-100, batch 64: peak resident memory over the reference's
With --gpu: step, epoch, packed (several runs at once on one GPU: images/s of all over those of one), memory.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the package `benchmark` is when this folder is run

from benchmark.parts import GPU_PARTS, PARTS
from benchmark.startup import ROOT
from benchmark.table import Table

from lcm.config.options import choices, load
from lcm.errors import UserError, exit_on_user_error

GPU_MINUTES = 7  # in which the rounds of a part begin; it ends within eight
GPU_STEPS = 200  # of a unit of work: a GPU is waited for after them, not after each


def parse(arguments):
    """The command line as options. Raises UserError for what it cannot mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--parts", help="which of them, with commas (default: all)")
    parser.add_argument(
        "--networks", default="resnet20,densenet40", help="networks for 32x32 images (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="undisturbed rounds (default: 5, on a GPU 3)")
    parser.add_argument("--seconds", type=float, help="length of a turn (default: 5, on a GPU 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the processors that this process may use)")
    parser.add_argument("--quick", action="store_true", help="one round of half a second: a look, no measurement")
    parser.add_argument(
        "--out", metavar="FILE", help="default: results/benchmark.csv, with --gpu results/benchmark-gpu.csv"
    )
    parser.add_argument("--gpu", action="store_true", help="the parts for a GPU")
    parser.add_argument("--device", help=argparse.SUPPRESS)  # of the sides: the GPU's parts can run on a CPU, in tests
    options = parser.parse_args(arguments)
    known = GPU_PARTS if options.gpu else PARTS
    options.parts = options.parts.split(",") if options.parts else list(known)
    if unknown := [part for part in options.parts if part not in known]:
        raise UserError(f"--parts {unknown[0]}: there is no such part; choose from {', '.join(known)}")
    options.networks = options.networks.split(",")
    small = [name for name in choices("model") if load("model", name)["image_size"] == 32]
    if unknown := [name for name in options.networks if name not in small]:
        raise UserError(f"--networks {unknown[0]}: no network for 32x32 images; choose from {', '.join(small)}")
    rounds, seconds = (1, 0.5) if options.quick else (3, 2.0) if options.gpu else (5, 5.0)
    options.rounds = rounds if options.rounds is None else options.rounds
    options.seconds = seconds if options.seconds is None else options.seconds
    if options.rounds < 1 or options.seconds <= 0 or (options.threads is not None and options.threads < 1):
        raise UserError("--rounds and --threads must be at least 1, --seconds above 0")
    options.minutes = GPU_MINUTES / (2 * len(options.networks)) if options.gpu else math.inf  # of a group of sides
    options.steps = (2 if options.quick else GPU_STEPS) if options.gpu else 0
    options.out = Path(options.out or ROOT / "results" / f"benchmark{'-gpu' * options.gpu}.csv")
    if not options.out.resolve().parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.resolve().parent}; make it first")
    return options


@exit_on_user_error
def main(arguments=None):
    options = parse(arguments)
    import torch

    from lcm.training.device import available_processors, processor

    options.device = options.device or ("cuda" if options.gpu else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--gpu: torch finds no usable NVIDIA GPU or driver; leave it out for the CPU's parts")
    options.threads = options.threads or available_processors()
    options.loaders = min(8, available_processors()) if options.gpu else 2
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    known = GPU_PARTS if options.gpu else PARTS
    table = Table(options.out, machine=machine, torch=torch.__version__, threads=options.threads)
    failed = 0
    for part in options.parts:
        for rows in known[part](options):
            table.add(part, rows)
            failed += sum("failed: " in row["remark"] for row in rows)
    if failed:
        sys.exit(f"{failed} rows could not be measured: their remarks, and the messages above, say why")
    print(f"\n{options.out} written")


if __name__ == "__main__":
    main()
