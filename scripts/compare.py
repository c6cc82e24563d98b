"""Compare runs that differ in attention and seed alone: table, verdicts, forest plot.

    python scripts/compare.py runs                                      # every run below runs/
    python scripts/compare.py runs data=digits schedule.epochs=30       # those with these settings
    python scripts/compare.py results/metrics data=digits --against se  # records, compared with se
    python scripts/compare.py runs --by schedule.learning_rate          # rows for each value
    python scripts/compare.py runs --by attention.reduction             # an arm for each value
    python scripts/compare.py runs --out comparisons/mine               # mine.md, .csv, .tex, .svg
    python scripts/compare.py runs --out comparisons/mine.pdf           # the picture as PDF (PNG)

Two runs of one seed are a pair. Verdicts are corrected for all comparisons of the command. Where
runs cannot be compared, a message names the settings in which they differ (exit code 2). mine.tex
has fewer columns than mine.md, so that it fits into a text column.
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting import figures
from lcm.reporting.any_runs import choose, compare_runs, read_folders, terminal
from lcm.reporting.render import VIEWS, write_tables


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "what", nargs="*", help="folders of runs or records (default: runs), and key=value"
    )
    parser.add_argument(
        "--against",
        default="none",
        metavar="ATTENTION",
        help="compare with this one (default: none)",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="KEY",
        help="rows for each value of this key; can be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="STEM",
        help="also write STEM.md, .csv, .tex and .svg; STEM.pdf and STEM.png change the picture",
    )
    options = parser.parse_intermixed_args(arguments)
    choices = [text for text in options.what if "=" in text]
    runs, left_out = read_folders([text for text in options.what if "=" not in text] or ["runs"])
    picture = options.out or Path("comparison")
    if picture.suffix.lower() in VIEWS:
        picture = picture.with_suffix("")
    if picture.suffix.lower() not in figures.METADATA:
        picture = picture.with_name(f"{picture.name}.svg")
    runs = choose(runs, choices)
    table, figure = compare_runs(runs, options.against, picture.stem, options.by)
    print("\n".join([terminal(table), *(f"left out: {line}" for line in left_out)]))
    if options.out:
        write_tables([table], picture.parent)
        figures.save(figure, picture)
        print(f"{picture.with_suffix('')}.md, .csv, .tex, {picture.suffix} written")


if __name__ == "__main__":
    main()
