"""What the project adds to the work itself.

    python -m benchmarks.overhead cleaning [--rows N ...]   rows a second of a core, with near-duplicates and without
    python -m benchmarks.overhead memory [--rows N ...]     peak memory of cleaning, and its curve
    python -m benchmarks.overhead graph [--levels 100]      `dvc repro` and `dvc status` with nothing to do
    python -m benchmarks.overhead sweep [LEVEL ...]         wall time of a sweep over the compute of its levels
    python -m benchmarks.overhead cores [LEVEL ...]         levels an hour side by side, and one at a time

In:  params.yaml, data/raw and, for the last two, a finished pipeline, which stays as it is.
Out: a table on standard output; of `memory` also docs/images/cleaning_memory.png.

Projects and data are made in a temporary folder (TMPDIR), which is removed: a million rows take 150 MB there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages.errors import UserError, command

PICTURE = Path("docs/images/cleaning_memory.png")


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="What the project adds.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("cleaning").add_argument("--rows", type=int, nargs="+", default=[200_000])
    memory = kinds.add_parser("memory")
    memory.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000, 5_000_000, 10_000_000])
    memory.add_argument("--picture", type=Path, default=PICTURE)
    kinds.add_parser("graph").add_argument("--levels", type=int, default=100)
    kinds.add_parser("sweep").add_argument("levels", nargs="*", metavar="LEVEL")
    cores = kinds.add_parser("cores")
    cores.add_argument("levels", nargs="*", metavar="LEVEL")
    cores.add_argument("-j", "--jobs", type=int, default=2, metavar="N", help="levels side by side (default: 2)")
    args = parser.parse_args(arguments)
    if "rows" in args and min(args.rows) < 1:
        raise UserError("--rows must be 1 or more")
    if args.kind == "graph":
        from benchmarks.overhead.graph import measure

        measure(args.levels)
    elif args.kind in ("sweep", "cores"):
        from benchmarks.overhead import sweep

        if args.kind == "sweep":
            sweep.measure(args.levels)
        else:
            sweep.measure_cores(args.levels, args.jobs)
    else:
        from benchmarks.overhead import cleaning

        if args.kind == "cleaning":
            cleaning.show_rates(args.rows)
        else:
            cleaning.show_memory(args.rows, args.picture)


if __name__ == "__main__":
    main()
