"""Build the tables and the list of claims from results/runs.csv and results/paper.csv.

    python scripts/tables.py                                    # the paper's schedules
    python scripts/tables.py --schedule digits                  # the runs of another schedule
    python scripts/tables.py --schedule short --precision bf16  # and of another precision
    python scripts/tables.py --all                              # all that have runs
    python scripts/tables.py --all --readme REPRODUCTION.md docs/sweeps.md  # and fill result blocks

Each table is written as Markdown, CSV and LaTeX. A cell without a run has a dash; the command that
trains the run is below the table.
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import UserError, exit_on_user_error
from lcm.files import write
from lcm.reporting.claims import claims_page, read_chances, read_claims
from lcm.reporting.protocol import PAPER_SCHEDULE, Protocol, protocols
from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.render import write_tables
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import build, read_complexity, read_paper


def write_protocol(runs, protocol, results):
    """Write the tables of a protocol, and for the paper's schedules the list of claims."""
    tables = build(runs, protocol, results)
    if not tables:
        advice = "train one, then run scripts/collect.py"
        if protocol.schedule in PAPER_SCHEDULE.values():
            advice = f"{protocol.schedule} is a schedule of the paper: leave --schedule out"
        raise UserError(f"no finished run without deviations has {protocol.words}: {advice}")
    write_tables(tables, results)
    if protocol.schedule is None:
        claims = read_claims(results / "claims.yaml", read_paper(results))
        file, complexity = results / f"claims{protocol.suffix}.md", read_complexity(results)
        write(file, claims_page(claims, runs, protocol, complexity, read_chances(results)))
        print(f"{file}: {len(claims)} claims")
    for table in tables:
        cells = f"{table.filled} of {len(table.records)} cells have runs"
        print(f"{results}/{table.name}.md, .csv, .tex: {cells}")


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "--schedule", help="use runs of this schedule (default: the paper's of each data set)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "tf32", "bf16"),
        help="use runs of this precision",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="build the tables of every protocol that has finished runs",
    )
    parser.add_argument(
        "--results", default="results", help="folder of the results (default: results)"
    )
    parser.add_argument(
        "--readme",
        nargs="+",
        default=[],
        metavar="FILE",
        help="also fill the result blocks of these files",
    )
    options = parser.parse_args(arguments)
    results = Path(options.results)
    runs = read_runs(results / "runs.csv")
    for protocol in (
        protocols(runs) if options.all else [Protocol(options.schedule, options.precision)]
    ):
        write_protocol(runs, protocol, results)
    blocks = readme_blocks(runs, results) if options.readme else {}
    for file in options.readme:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from None
        write(file, fill_readme(text, blocks))
        print(f"{file}: result blocks filled")


if __name__ == "__main__":
    main()
