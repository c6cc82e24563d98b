"""Build the tables and the list of claims from results/runs.csv and results/paper.csv.

    python scripts/tables.py
    python scripts/tables.py --readme REPRODUCTION.md results/README.md  # and fill result blocks

There are tables for the paper's schedules, and for every other schedule and precision that has
finished runs. Runs with other changed settings are in none: scripts/compare.py compares them. Each
table is written as Markdown, CSV and LaTeX. A cell without a run has a dash; the command that
trains the run is below the table.
"""

from pathlib import Path

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting.claims import claims_page, read_chances, read_claims
from lcm.reporting.protocol import protocols
from lcm.reporting.render import fill_blocks, write_tables
from lcm.reporting.runs import read_runs
from lcm.reporting.tables import build, counts, read_complexity, read_paper


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__, results=True)
    parser.add_argument(
        "--readme",
        nargs="+",
        default=[],
        type=Path,
        metavar="FILE",
        help="also fill the result blocks of these files",
    )
    options = parser.parse_args(arguments)
    results = options.results
    if lacking := [file for file in options.readme if not file.is_file()]:
        parser.error(f"--readme {lacking[0]}: no such file")
    runs = read_runs(results / "runs.csv")
    claims = read_claims(results / "claims.yaml", read_paper(results))
    tables = []
    for protocol in protocols(runs):
        tables += build(runs, protocol, results)
        if protocol.schedule is None:
            file, complexity = results / f"claims{protocol.suffix}.md", read_complexity(results)
            write(file, claims_page(claims, runs, protocol, complexity, read_chances(results)))
            print(f"{file}: {len(claims)} claims")
    write_tables(tables, results)
    for table in tables:
        cells = f"{table.filled} of {len(table.records)} cells have runs"
        print(f"{results}/{table.name}.md, .csv, .tex: {cells}")
    for file in options.readme:
        write(file, fill_blocks(file.read_text(encoding="utf-8"), [counts(runs), *tables]))
        print(f"{file}: result blocks filled")


if __name__ == "__main__":
    main()
