"""Time a training step of every network of the paper's tables: results/cost.csv (minutes).

    python scripts/cost.py
    python scripts/tables.py --all --readme docs/sweeps.md  # what each table costs

Two steps are timed, after an epoch that warms up. Batches of large images are small: the time per
image hardly depends on the batch size.
"""

from pathlib import Path

import checkout  # before lcm
import pandas as pd
from benchmark import Side

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting.cost import cells
from lcm.training.device import choose_device

STEPS = 2  # of an epoch: the first epoch warms up, the second is timed
BATCHES = {
    "resnet20": 64,
    "resnet32": 64,
    "resnet50_cifar": 32,
    "densenet40": 32,
}  # of a CPU; the other networks: 8


def measured(model, attention, device):
    """(seconds per image, batch size, device in words)."""
    batch = BATCHES.get(model, 8) if device == "cpu" else 64
    words = [f"device={device}", f"schedule.batch_size={batch}"]
    side = Side(model, "fp32", attention, words, STEPS)
    return 1 / side.turn()["step"], batch, side.machine


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "--results", default="results", help="folder of the results (default: results)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    options = parser.parse_args(arguments)
    pairs = {
        (model, attention)
        for runs in cells(options.results).values()
        for _, model, attention in runs
    }
    device = choose_device(options.device).type
    rows = []
    for index, (model, attention) in enumerate(sorted(pairs), 1):
        seconds, batch, machine = measured(model, attention, device)
        print(
            f"[{index}/{len(pairs)}] {model} {attention}: {1000 * seconds:.2f} ms per image",
            flush=True,
        )
        rows.append([model, attention, f"{seconds:.4g}", batch, machine])
    table = pd.DataFrame(
        rows, columns=["model", "attention", "seconds_per_image", "batch", "device"]
    )
    write(Path(options.results) / "cost.csv", table.to_csv(index=False))
    print(f"{options.results}/cost.csv written")


if __name__ == "__main__":
    main()
