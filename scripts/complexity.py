"""Count parameters and operations: all rows of the paper's Tables 1-5, or one network.

    python scripts/complexity.py                                # 57 rows beside the paper's cells; exit code 1 if one differs
    python scripts/complexity.py --csv results/complexity.csv   # the same, and a file of exact figures
    python scripts/complexity.py model=resnet20 attention=lcm2  # one network, module by module
    python scripts/complexity.py model=resnet50 attention=gc num_classes=10 image_size=64 reduction=8

GFloat is the paper's count, MAC the true multiply-accumulates with matrix products between tensors (lcm/complexity.py).
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import yaml

from lcm.complexity import as_printed, count
from lcm.config.options import load as load_config
from lcm.errors import UserError, exit_on_user_error
from lcm.files import write
from lcm.models.build import build_network, paper_complexity

PAPER = Path(__file__).parents[1] / "results" / "paper.csv"


@exit_on_user_error
def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("network", nargs="*", metavar="key=value", help="model=..., and other keys of one network")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write table,label,model,attention,params,gfloat,macs")
    options = parser.parse_args(arguments)
    if not options.network:
        return print_tables(options.csv)
    if options.csv:
        raise UserError("--csv writes the paper's rows: leave out the network")
    print_network(dict(key_value(text) for text in options.network))
    return 0


def key_value(text):
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not of the form key=value, such as model=resnet20")
    return key, yaml.safe_load(value)


def print_tables(file):
    """Print every row of Tables 1-5, ours and the paper's; returns 1 if a cell differs."""
    with open(PAPER, newline="") as source:
        rows = {(row["table"], row["label"]): row for row in csv.DictReader(source)}.values()
    counts = {pair: paper_complexity(*pair) for pair in dict.fromkeys((row["model"], row["attention"]) for row in rows)}
    equal, records = 0, []
    print(
        f"{'table':5} {'label':28} {'params':>10} {'M':>7} {'paper':>7} {'GFloat':>8} {'':>6} {'paper':>6} {'GMAC':>8}"
    )
    for row in rows:
        ours = counts[row["model"], row["attention"]]
        params, gfloat = as_printed(ours.params / 1e6, row["params_m"]), as_printed(ours.gfloat, row["gflops"])
        same = (params == row["params_m"]) + (gfloat == row["gflops"])
        equal += same
        print(
            f"{row['table']:5} {row['label']:28} {ours.params:10,} {params:>7} {row['params_m']:>7} {ours.gfloat:8.6f} "
            f"{gfloat:>6} {row['gflops']:>6} {ours.macs / 1e9:8.6f}{'' if same == 2 else '  differs'}"
        )
        records.append(
            [row["table"], row["label"], row["model"], row["attention"], ours.params, ours.gfloat, ours.macs]
        )
    print(f"{equal} of {2 * len(rows)} cells equal to the paper's")
    if file:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["table", "label", "model", "attention", "params", "gfloat", "macs"])
        writer.writerows(records)
        write(file, text.getvalue())
        print(f"wrote {file}")
    return int(equal < 2 * len(rows))


def print_network(keys):
    """Print what each module of one network costs."""
    if "model" not in keys:
        raise UserError("which network? Add model=..., such as model=resnet20")
    image_size = keys.pop("image_size", None) or load_config("model", keys["model"])["image_size"]
    complexity = count(build_network(**keys), image_size)
    width = max(len(row.name) for row in complexity.rows)
    print(f"{'module':{width}} {'kind':16} {'params':>12} {'GFloat':>10} {'GMAC':>10}")
    for row in complexity.rows:
        print(f"{row.name:{width}} {row.kind:16} {row.params:12,} {row.gfloat:10.6f} {row.macs / 1e9:10.6f}")
    print(f"{'total':{width}} {'':16} {complexity.params:12,} {complexity.gfloat:10.6f} {complexity.macs / 1e9:10.6f}")


if __name__ == "__main__":
    sys.exit(main())
