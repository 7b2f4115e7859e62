"""Make the cells of the study that are not there yet, in the plan's order; or its tables.

    python -m benchmarks.study --models FOLDER     # goes on where it was stopped; Ctrl-C at any time
    python -m benchmarks.study --report            # rewrites the tables of docs/study.md

In:  benchmarks/study.yaml, params.yaml, recipes and the bundled data; FOLDER keeps data and baselines between calls.
Out: benchmarks/study.csv, a row more after each cell. A row whose params are those of the plan is not made again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks import rows
from benchmarks.study import plan, report, results
from benchmarks.study.plan import Cell, Plan
from stages.errors import UserError, command

FOLDER = Path("benchmarks")
PAGE = Path("docs/study.md")
NICENESS = 15
TICK_S = 1.0
"""Between looks at the file that says to pause."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make cells, or tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", type=Path, default=FOLDER / "study.yaml", help="which cells there are")
    parser.add_argument("--csv", type=Path, default=FOLDER / "study.csv", help="where the rows are")
    parser.add_argument("--models", type=Path, help="folder of data and baselines, not in git")
    parser.add_argument("--pause-file", type=Path, help="nothing is computed while this file is there")
    parser.add_argument("--limit", type=int, help="make so many cells at most")
    parser.add_argument("--report", action="store_true", help=f"rewrite the tables of {PAGE} and make nothing")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in good order too
    chosen = plan.load(options.plan)
    if options.report:
        report.rewrite(PAGE, chosen, results.latest(results.read(options.csv)))
        return
    if options.models is None:
        raise UserError("--models names no folder: say where to keep data and baselines, outside git")
    for cell in islice(missing(chosen, options.csv), options.limit):
        run(chosen, cell, options.models.absolute(), options.csv.absolute(), options.pause_file)


def missing(chosen: Plan, path: Path) -> Iterable[Cell]:
    """Cells of the plan without a row of the same params, in order."""
    from benchmarks.study.workspace import fingerprint, settings

    there = {(row.cell, row.params) for row in results.read(path)}
    project, known = Path.cwd(), dict[Cell, str]()
    for cell in chosen.cells():
        any_seed = replace(cell, seed=0)  # which has no say in the digest, and there are five
        if any_seed not in known:
            known[any_seed] = fingerprint(settings(chosen, cell, project), cell)
        if (cell, known[any_seed]) not in there:
            yield cell


def run(chosen: Plan, cell: Cell, models: Path, path: Path, pause_file: Path | None) -> None:
    """Make a cell in a fork of this process, which has imported everything and computed nothing.

    So each cell begins as a stage in its own process would, less the imports, and what it leaves in memory goes.

    Raises:
        UserError: it failed; the stage has said why.
    """
    _import_all()
    while pause_file and pause_file.exists():
        time.sleep(TICK_S)
    start = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=_make, args=(chosen, cell, models, path, Path.cwd()))
    process.start()
    paused = False
    try:
        while process.is_alive():
            process.join(TICK_S)
            pause = bool(pause_file and pause_file.exists())
            if pause != paused and process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGSTOP if pause else signal.SIGCONT)
                paused = pause
    finally:
        with suppress(ProcessLookupError, ValueError):
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)
                process.terminate()
                process.join()
    if process.exitcode:
        raise UserError(f"{cell} could not be made: what went wrong is said above")
    print(f"{cell}: {time.monotonic() - start:.0f} s", flush=True)


def _make(chosen: Plan, cell: Cell, models: Path, path: Path, project: Path) -> None:
    from benchmarks.study.workspace import make

    os.nice(max(0, NICENESS - os.nice(0)))
    del sys.argv[1:]  # which stages without a level parse
    try:
        row = make(chosen, cell, models, project)
    except UserError as error:
        sys.exit(f"error: {error}")
    rows.append(path, row)
    print(f"BLEU {row.bleu:.1f}, validation {row.validation_bleu:.1f}, loss {row.loss:.3f}", flush=True)


def _import_all() -> None:
    """Import what any cell needs. Threads that an import started would be missing in a fork: one thread starts none."""
    import importlib
    import pkgutil

    import stages

    for package in ("pruning", "training", "models", "evaluation", "text"):
        folder = f"{stages.__path__[0]}/{package}"
        for module in pkgutil.walk_packages([folder], f"stages.{package}."):
            if not module.name.endswith(".plots"):  # which draws, and takes a second to import
                importlib.import_module(module.name)
    importlib.import_module("benchmarks.study.workspace")


if __name__ == "__main__":
    os.environ |= dict.fromkeys(ONE_THREAD, "1") | {"ESPALIER_TRACKING": "off"}
    main()
