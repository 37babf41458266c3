"""`python -m tests.torture [--kills=200] [--processes=1]`: SIGKILL at random instants, then a comparison bit by bit."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.torture.torture import torture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often the run is killed before it may end (200)")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="that train together (1)")
    parser.add_argument("--seed", type=int, default=0, help="what the instants are drawn from (0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), arguments.kills, arguments.seed, arguments.processes)
    print(report.table())
    return 0 if report.is_clean() else 1


if __name__ == "__main__":
    sys.exit(main())
