"""Compare runs that differ in attention and seed alone, whatever their data, schedule and deviations from the protocol.

python scripts/compare.py                                        # every finished run below runs/
python scripts/compare.py data=digits schedule.epochs=30         # those that have these values
python scripts/compare.py my/runs model=resnet20 --against se    # against another arm than none
python scripts/compare.py data=digits --out digits               # also results/digits.md, .csv and .png
"""

import argparse
from pathlib import Path

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting.compare import comparison, read_finished, selected, terminal
from lcm.reporting.render import csv_text, markdown


@exit_on_user_error
def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", nargs="*", metavar="FOLDER_OR_OVERRIDE", help="folders of runs (runs/), KEY=VALUE")
    parser.add_argument("--against", default="none", help="the arm that the others are compared with (none)")
    parser.add_argument("--out", metavar="STEM", help="also write STEM.md, STEM.csv and STEM.png")
    parser.add_argument("--results", default="results", help="the folder of a relative STEM (default: results)")
    options = parser.parse_intermixed_args(arguments)
    folders = [word for word in options.what if "=" not in word] or ["runs"]
    found, problems = read_finished(folders)
    found = selected(found, [word for word in options.what if "=" in word])
    table, rows = comparison(found, options.against)
    print(terminal(table))
    for problem in problems:
        print(f"left out: {problem}")
    if options.out:
        from lcm.reporting import plots

        stem = Path(options.results) / options.out
        write(Path(f"{stem}.md"), markdown(table))
        write(Path(f"{stem}.csv"), csv_text(table))
        shown = [row for row in rows if row[1] is not None]
        if shown:
            write(Path(f"{stem}.png"), plots.png(plots.forest(shown, table.title.replace("; ", "\n"))))
        print(f"{stem}.md, .csv{', .png' if shown else ''} written")


if __name__ == "__main__":
    main()
