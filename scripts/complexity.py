"""Count parameters and operations: all rows of the paper's Tables 1-5, or one network.

    python scripts/complexity.py                               # 57 rows beside the paper's
    python scripts/complexity.py --csv results/complexity.csv  # and a file of exact counts
    python scripts/complexity.py model=resnet20 attention=lcm2  # one network, by module

GFloat is the paper's count. MAC is the number of true multiply-accumulates, matrix products between
tensors included (lcm/complexity.py). Exit code 1: a count differs from the paper's.
"""

import sys
from pathlib import Path

import checkout  # before lcm
import pandas as pd
from torch import nn

from lcm.complexity import Row, count
from lcm.config.check import RULES
from lcm.config.compose import GROUPS, load, read
from lcm.errors import UserError, exit_on_user_error
from lcm.files import write
from lcm.models.build import build_network
from lcm.models.probe import why
from lcm.reporting.protocol import PAPER, read_csv
from lcm.reporting.render import as_printed

KEYS = ["table", "label", "model", "attention"]
COUNTS = ["params", "gfloat", "macs"]
CLASSES = {224: 100}  # that the paper's tables count, by the network's image size; else 10


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, config_dir=True)
    parser.add_argument(
        "network", nargs="*", metavar="key=value", help="model=..., and other keys of one network"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the exact counts of the paper's rows to this file",
    )
    options = parser.parse_args(arguments)
    if not options.network:
        return print_tables(options.csv)
    pairs = [text.partition("=") for text in options.network]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"{wrong[0]!r} is not of the form key=value, such as model=resnet20")
    if options.csv:
        parser.error("--csv is for the paper's rows, without key=value")
    # Also as train.py has them: attention.reduction=8.
    return print_network({key.rpartition(".")[2]: read(value) for key, _, value in pairs})


def paper_complexity(model, attention):
    """What the paper's tables count for one of their rows, a `Complexity`: networks by name, with
    the paper's heads.

    The CIFAR rows are 10-class networks, those of Table 5 have 100 classes, except that
    DenseNet-121 is counted with a 1000-class head that runs and the parameters of a 100-class head
    that does not.
    """
    config = load("model", model)
    image_size = config["image_size"]
    # Number 3 in REPRODUCTION.md: the printed counts include both heads.
    if config["family"] == "densenet121":
        network = build_network(model, attention, num_classes=1000)
        network.fc = nn.Linear(network.classifier.in_features, 100)  # never called
    else:
        network = build_network(model, attention, num_classes=CLASSES.get(image_size, 10))
    return count(network, image_size)


def print_tables(file):
    """Print every row of Tables 1-5, ours and the paper's; returns 1 if a cell differs."""
    # paper.csv has a line for each accuracy of a row, with the row's counts on every line.
    cells = pd.DataFrame(read_csv(PAPER)).drop_duplicates(["table", "label"], ignore_index=True)
    pairs = list(zip(cells.model, cells.attention, strict=True))
    # Each network once: several are in more than one table.
    counts = {pair: paper_complexity(*pair) for pair in dict.fromkeys(pairs)}
    ours = {key: [getattr(counts[pair], key) for pair in pairs] for key in COUNTS}
    table = cells[KEYS].assign(**ours)
    # Compared as text, with the decimals that the paper prints.
    millions = list(map(as_printed, table.params / 1e6, cells.params_m))
    gfloat = list(map(as_printed, table.gfloat, cells.gflops))
    wrong = cells.params_m.ne(millions).astype(int) + cells.gflops.ne(gfloat)
    rounded = {"M": millions, "paper's M": cells.params_m, "G": gfloat, "paper's G": cells.gflops}
    shown = table.drop(columns=["model", "attention"]).assign(**rounded)
    shown[""] = wrong.map(lambda count: "differs" if count else "")
    print(shown.to_string(index=False, float_format="%.6f"))
    print(f"{2 * len(shown) - wrong.sum()} of {2 * len(shown)} cells equal to the paper's")
    if file:
        write(file, table.to_csv(index=False, lineterminator="\n"))
        print(f"wrote {file}")
    return int(wrong.any())


def print_network(keys):
    """Print what each module of one network costs; returns 0."""
    if "model" not in keys:
        raise UserError("which network? Add model=..., such as model=resnet20")
    # A key has no group here: it is checked by the rule of whichever group has such a key.
    for key, value in keys.items():
        rules = [RULES[name] for name in [f"{group}.{key}" for group in GROUPS] if name in RULES]
        if wrong := [rule.expected for rule in rules if not rule.fits(value)]:
            raise UserError(f"{key}={value}: must be {wrong[0]}")
    own_size = load("model", keys["model"])["image_size"]
    image_size = keys.pop("image_size", own_size)
    keys.setdefault("num_classes", CLASSES.get(own_size, 10))
    try:
        complexity = count(build_network(**keys), image_size)
    except UserError:
        raise
    except Exception as error:  # whatever a network raises of sizes that do not fit
        raise UserError(f"model={keys['model']}, image_size={image_size}: {why(error)}") from error
    total = Row("total", "", complexity.params, complexity.gfloat, complexity.macs)
    table = pd.DataFrame([*complexity.rows, total])
    table["name"] = table.name.str.ljust(table.name.str.len().max())
    table["GMAC"] = table.pop("macs") / 1e9
    print(table.to_string(index=False, float_format="%.6f", formatters={"params": "{:,}".format}))
    if complexity.uncounted:
        print("not counted:", ", ".join(complexity.uncounted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
