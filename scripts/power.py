"""Measure by simulation how often the verdicts are wrong and what they can see; writes results/power.md (minutes).

python scripts/power.py
"""

import argparse
from pathlib import Path

from lcm.errors import exit_on_user_error
from lcm.files import write
from lcm.reporting.power import power_page


@exit_on_user_error
def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--results", default="results", help="folder of the results (default: results)"
    )
    options = parser.parse_args(arguments)
    write(Path(options.results) / "power.md", power_page())
    print(f"{options.results}/power.md written")


if __name__ == "__main__":
    main()
