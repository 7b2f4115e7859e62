"""python -m stages.clean [--scheduler ADDRESS]

Rows are cleaned by `clean.workers` processes or, with a scheduler, by the workers of its Dask cluster; the outputs are
the same bytes. As a stage: `ESPALIER_SCHEDULER=ADDRESS dvc repro clean`.

In: the data that `data` in params.yaml names, and the steps under `clean`.
Out: outputs/data/{train,validation,test}.parquet with a row a pair (source, target, file, row), and
outputs/data/rejected.parquet with every row left out and the reason; outputs/data/profile.json with counts,
lengths and examples; outputs/metrics/clean.json with its numbers. All of them, or none if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack

from stages import files, layout, params
from stages.cluster.connection import VARIABLE, connected
from stages.cluster.spread import Spread
from stages.errors import command
from stages.startup import collect_rarely
from stages.text.cleaning import OUTPUTS, clean_pairs
from stages.text.profile import metrics, show
from stages.text.progress import counting


@command
def main() -> None:
    """Clean and split the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheduler", metavar="ADDRESS", default=os.environ.get(VARIABLE), help="of a Dask cluster")
    args = parser.parse_args()
    settings = params.load("data", "clean")
    collect_rarely()  # near-duplicates are found in sets by the million, none of them garbage

    with ExitStack() as stack:
        scratch = stack.enter_context(files.scratch_folder(layout.SCRATCH, "clean"))
        progress = stack.enter_context(counting("cleaning"))
        # Each output takes its place when the block has ended well, so old and new are never mixed.
        paths = {name: layout.DATA / f"{name}.parquet" for name in OUTPUTS}
        outputs = {name: stack.enter_context(files.replacing(path)) for name, path in paths.items()}
        profile_file = stack.enter_context(files.replacing(layout.DATA / "profile.json"))
        metrics_file = stack.enter_context(files.replacing(layout.metrics_file("clean")))

        spread = Spread(stack.enter_context(connected(args.scheduler))) if args.scheduler else None
        profile = clean_pairs(settings.data, settings.clean, outputs, scratch, progress, spread)
        files.write_json(profile_file, profile)
        files.write_json(metrics_file, metrics(profile))
    show(profile)


if __name__ == "__main__":
    main()
