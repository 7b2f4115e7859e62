"""Make the cells of the study that are not there yet, in the plan's order; or its tables.

    python -m benchmarks.study --models FOLDER -j 2   # goes on where it was stopped; Ctrl-C at any time
    python -m benchmarks.study --report               # rewrites the tables of docs/study.md

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
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks import rows
from benchmarks.study import plan, report, results
from benchmarks.study.plan import Cell, Plan
from benchmarks.study.results import Row
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
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="cells at a time (default: 1)")
    parser.add_argument("--limit", type=int, help="make so many cells at most")
    parser.add_argument("--report", action="store_true", help=f"rewrite the tables of {PAGE} and make nothing")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in good order too
    chosen = plan.load(options.plan)
    if options.report:
        report.rewrite(PAGE, chosen, results.latest(results.read(options.csv)))
        return
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: give 1 or more")
    if options.models is None:
        raise UserError("--models names no folder: say where to keep data and baselines, outside git")
    cells = islice(missing(chosen, options.csv), options.limit)
    run(chosen, cells, options.models.absolute(), options.csv.absolute(), options.jobs, options.pause_file)


def missing(chosen: Plan, path: Path) -> Iterable[Cell]:
    """Cells of the plan without a row of the same params, in order."""
    from benchmarks.study.workspace import fingerprint, settings

    there = {(row.cell, row.params) for row in results.read(path)}
    project, known = Path.cwd(), dict[Cell, str]()
    for cell in chosen.cells():
        any_seed = replace(cell, seed=0)  # which has no say in the digest, and there are five
        if any_seed not in known:
            known[any_seed] = fingerprint(chosen, settings(chosen, cell, project), cell)
        if (cell, known[any_seed]) not in there:
            yield cell


def run(chosen: Plan, cells: Iterable[Cell], models: Path, path: Path, jobs: int, pause_file: Path | None) -> None:
    """Make cells, so many at a time, and add their rows in the order they are done.

    A baseline's cells share its workspace, so that those made at once are of different languages or seeds.

    Raises:
        UserError: one failed; the stage has said why, and the others were ended.
    """
    _import_all()
    waiting, running = list(cells), dict[tuple[str, int], _Job]()
    paused = False
    try:
        while waiting or running:
            if paused != (paused := bool(pause_file and pause_file.exists())):
                for job in running.values():
                    job.pause(paused)
            while not paused and len(running) < jobs and (cell := _next(waiting, running)):
                waiting.remove(cell)
                running[cell.language, cell.seed] = _Job(chosen, cell, models)
            wait([job.process.sentinel for job in running.values()], TICK_S)
            for key, job in list(running.items()):
                if not job.process.is_alive():
                    del running[key]
                    rows.append(path, job.row())
    finally:
        for job in running.values():
            job.end()


def _next(waiting: Sequence[Cell], running: Container[tuple[str, int]]) -> Cell | None:
    """The first whose workspace is free."""
    return next((cell for cell in waiting if (cell.language, cell.seed) not in running), None)


class _Job:
    """A cell being made in a fork of this process, which has imported everything and computed nothing.

    So each cell begins as a stage in its own process would, less the imports, and what it leaves in memory goes.
    """

    def __init__(self, chosen: Plan, cell: Cell, models: Path) -> None:
        forks = multiprocessing.get_context("fork")
        self.cell, self._start = cell, time.monotonic()
        self._made, made = forks.Pipe(duplex=False)
        self.process = forks.Process(target=_make, args=(chosen, cell, models, Path.cwd(), made))
        self.process.start()
        made.close()

    def row(self) -> Row:
        """What it made, once it has ended.

        Raises:
            UserError: it failed.
        """
        if self.process.exitcode or not self._made.poll():
            raise UserError(f"{self.cell} could not be made: what went wrong is said above")
        made: Row = self._made.recv()
        print(f"{self.cell}: BLEU {made.bleu:.1f}, {time.monotonic() - self._start:.0f} s", flush=True)
        return made

    def pause(self, paused: bool) -> None:
        """Stop it where it is, or let it go on."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def end(self) -> None:
        """End it in good order."""
        with suppress(ProcessLookupError):
            self.pause(False)
            self.process.terminate()
        self.process.join()


def _make(chosen: Plan, cell: Cell, models: Path, project: Path, made: Connection) -> None:
    from benchmarks.study.workspace import make

    os.nice(max(0, NICENESS - os.nice(0)))
    del sys.argv[1:]  # which stages without a level parse
    try:
        made.send(make(chosen, cell, models, project))
    except UserError as error:
        sys.exit(f"error: {error}")


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
