"""What a sweep takes: over the compute of its levels, and side by side over one after another.

All is of the same levels, in a scratch clone of the commit:

- wall: `dvc repro --force` of their stages as `python -m stages.sweep -j N` runs it, with MLflow in its own
  database.
- compute: their stages' `main`, called in one process that has imported everything and made a level already, with
  tracking off. It contains reading inputs and writing outputs; not starting Python, imports, DVC and MLflow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from stages import layout, machine, params
from stages.errors import UserError
from stages.pool import Pool
from stages.processes import Processes
from stages.scratch import clone_of, commit_of
from stages.shell import dvc
from stages.sweep import graph, memory_needed, tasks_for
from stages.tracking.forked import recorders

STAGES = ("prune", "finetune", "evaluate")
LEVELS = 3
"""That are measured if none are named: the first of the sweep."""
SECONDS = Path(".scratch/compute.json")


def measure(levels: Sequence[str]) -> None:
    """Print wall time, compute and their ratio."""
    from rich.console import Console
    from rich.table import Table

    keys = _known(levels)[: None if levels else LEVELS]
    with _clone(keys) as seconds:
        compute, wall = seconds(0), seconds(1)
    table = Table("levels", "wall, s", "compute, s", "wall / compute", title="overhead of a sweep, one level at a time")
    table.add_row(", ".join(keys), f"{wall:.1f}", f"{compute:.1f}", f"{wall / compute:.2f}")
    Console().print(table)


def measure_cores(levels: Sequence[str], jobs: int) -> None:
    """Print levels an hour, one at a time and side by side, and their ratio.

    Args:
        levels: keys; none: all of the sweep.
        jobs: levels side by side.

    Raises:
        UserError: this process may not use so many cores; or there are fewer levels.
    """
    from rich.console import Console
    from rich.table import Table

    keys = _known(levels)
    if not 2 <= jobs <= min(machine.cores(), len(keys)):
        raise UserError(f"--jobs {jobs}: 2 or more, of {machine.cores()} cores and {len(keys)} levels")
    with _clone(keys) as seconds:
        rates = {count: len(keys) * 3600 / seconds(count) for count in (1, jobs)}
    table = Table("levels side by side", "levels an hour", "times", title=f"a sweep of {len(keys)} levels")
    for count, rate in rates.items():
        table.add_row(str(count), f"{rate:.1f}", f"{rate / rates[1]:.2f}")
    Console().print(table)


def _known(levels: Sequence[str]) -> list[str]:
    """These levels of the sweep; none: all.

    Raises:
        UserError: one is none of the sweep's.
    """
    known = [level.key for level in params.load("sweep").sweep.levels]
    if unknown := set(levels) - set(known):
        raise UserError(f"{', '.join(sorted(unknown))}: no level of the sweep in params.yaml")
    return list(dict.fromkeys(levels)) or known


@contextmanager
def _clone(keys: Sequence[str]) -> Iterator[Callable[[int], float]]:
    """Work in a scratch clone with the levels' inputs.

    Gives what measures the seconds that all levels take there, so many at a time; 0: their compute alone.
    """
    from benchmarks.overhead.processes import cost

    with clone_of(commit_of("HEAD"), layout.SCRATCH):
        dvc("checkout", "--with-deps", *(f"evaluate@{key}" for key in keys))
        Path(".scratch").mkdir(exist_ok=True)
        ours = {"PYTHONPATH": str(Path.cwd())}  # the clone's own code, as anyone runs it
        tracked = {
            "ESPALIER_TRACKING": "on",
            "MLFLOW_TRACKING_URI": f"sqlite:///{Path('.scratch/mlflow.db').absolute()}",
        }

        def seconds(jobs: int) -> float:
            command = [sys.executable, "-m", "benchmarks.overhead.sweep", str(jobs), *keys]
            cost(command, Path.cwd(), ours | (tracked if jobs else {}))
            measured: float = json.loads(SECONDS.read_text(encoding="utf-8"))
            return measured

        yield seconds


def swept(jobs: int, keys: Sequence[str]) -> float:
    """Seconds that the levels take in the clone, made again, so many at a time.

    Raises:
        UserError: a stage failed.
    """
    tasks = tasks_for(graph(), {f"{stage}@{key}" for stage in STAGES for key in keys})
    logs = Path(".scratch")
    pool = Pool(tasks, Processes(jobs, memory_needed, ["--force"]), logs=logs, show=lambda now: None)
    start = time.perf_counter()
    with recorders():
        pool.run()
    seconds = time.perf_counter() - start
    if failed := [task.name for task in tasks if task.state != "done"]:
        raise UserError(f"{failed[0]} was not made: {' '.join(pool.said.get(failed[0], ['no message'])[-1:])}")
    return seconds


def compute_seconds(keys: Sequence[str]) -> float:
    """Seconds of all stages of the levels in this process, which has made the first level before."""
    from stages import evaluate, finetune, prune

    mains = (prune.main, finetune.main, evaluate.main)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        for main in mains:
            main([keys[0]])
        start = time.perf_counter()
        for key in keys:
            for main in mains:
                main([key])
        return time.perf_counter() - start


if __name__ == "__main__":
    at_a_time, levels = int(sys.argv[1]), sys.argv[2:]
    measured = swept(at_a_time, levels) if at_a_time else compute_seconds(levels)
    SECONDS.write_text(json.dumps(measured), encoding="utf-8")
