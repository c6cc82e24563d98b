"""Make results/report.html, one self-contained page, and results/figures/*.svg.

python scripts/report.py
python scripts/report.py --results other/results
"""

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting.report import write_report


@exit_on_user_error
def main(arguments=None):
    results = checkout.parser(__doc__, results=True).parse_args(arguments).results
    count = write_report(results)
    print(f"{results}/report.html and {count} figures in {results}/figures")


if __name__ == "__main__":
    main()
