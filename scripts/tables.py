"""Build the tables and the list of claims from results/runs.csv and results/paper.csv.

    python scripts/tables.py                                  # the paper's own schedules: table1 ... table5, claims
    python scripts/tables.py --schedule digits                # quickstart: every attention on the embedded digits
    python scripts/tables.py --schedule short --precision bf16  # the same tables from other runs; their names say so
    python scripts/tables.py --all                            # all of them, as far as there are runs
    python scripts/tables.py --all --readme README.md REPRODUCTION.md  # and the result tables between their markers

Each table is written as Markdown, CSV and LaTeX. Where nothing was run there is a dash and the command that fills it.
"""

import argparse
from pathlib import Path

from lcm.errors import UserError, exit_on_user_error
from lcm.files import write
from lcm.reporting.claims import claims_page, read_claims
from lcm.reporting.collect import read_runs
from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.render import write_tables
from lcm.reporting.selection import Protocol, protocols
from lcm.reporting.tables import build, read_complexity


@exit_on_user_error
def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--schedule", help="take runs of this schedule (default: the paper's of each data set)")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="take runs of this precision"
    )
    parser.add_argument("--all", action="store_true", help="build the tables of every protocol that has finished runs")
    parser.add_argument("--results", default="results", help="where the results lie (default: results)")
    parser.add_argument(
        "--readme", nargs="+", default=[], metavar="FILE", help="also fill the result tables of these files"
    )
    options = parser.parse_args(arguments)
    runs = read_runs(Path(options.results) / "runs.csv")
    chosen = protocols(runs) if options.all else [Protocol(options.schedule, options.precision)]
    for protocol in chosen:
        tables = build(runs, protocol, options.results)
        if not tables:
            raise UserError(
                f"no finished run without deviations has {protocol.words}: train one, then run scripts/collect.py"
            )
        write_tables(tables, options.results)
        if protocol.schedule is None:  # the claims are about the paper's schedule
            claims = read_claims(Path(options.results) / "claims.yaml")
            page = claims_page(claims, runs, protocol, read_complexity(options.results))
            write(Path(options.results) / f"claims{protocol.suffix}.md", page)
            print(f"{options.results}/claims{protocol.suffix}.md: {len(claims)} claims")
        for table in tables:
            filled = sum(bool(record["n"]) for record in table.records)
            print(f"{options.results}/{table.name}.md, .csv, .tex: {filled} of {len(table.records)} cells have runs")
    blocks = readme_blocks(runs, options.results) if options.readme else {}
    for file in options.readme:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from None
        write(file, fill_readme(text, blocks))
        print(f"{file}: result tables filled")


if __name__ == "__main__":
    main()
