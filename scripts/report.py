"""Make results/report.html, one self-contained page, and results/figures/*.svg.

python scripts/report.py
python scripts/report.py --results other/results
"""

import checkout  # before lcm

from lcm.errors import exit_on_user_error
from lcm.reporting.report import write_report


@exit_on_user_error
def main(arguments=None):
    parser = checkout.parser(__doc__)
    parser.add_argument(
        "--results", default="results", help="folder of the results (default: results)"
    )
    options = parser.parse_args(arguments)
    count = write_report(options.results)
    print(f"{options.results}/report.html and {count} figures in {options.results}/figures")


if __name__ == "__main__":
    main()
