"""Simulate how often verdicts are wrong, and how many seeds each claim needs (a minute or two).

    python scripts/power.py

Writes results/power.md and results/power.csv.
"""

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting.claims import read_claims
from lcm.reporting.power import chances, power_page
from lcm.reporting.tables import read_paper, top1


@exit_on_user_error
def main(arguments=None):
    results = checkout.parser(__doc__, results=True).parse_args(arguments).results
    paper = read_paper(results)
    claims, accuracies = read_claims(results / "claims.yaml", paper), top1(paper)
    rows = chances(claims, accuracies)
    write(results / "power.csv", rows.to_csv(index=False, lineterminator="\n"))
    write(results / "power.md", power_page(claims, accuracies, rows))
    print(f"{results}/power.md and power.csv written; python scripts/tables.py shows them")


if __name__ == "__main__":
    main()
