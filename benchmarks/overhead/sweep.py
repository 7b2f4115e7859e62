"""The wall time of a sweep over the compute of its levels.

Both are of the same levels, one after another, in a scratch clone of the commit:

- wall: `dvc repro --force` of their stages as `python -m stages.sweep -j 1` runs it, with MLflow in its own
  database.
- compute: their stages' `main`, called in one process that has imported everything and made a level already, with
  tracking off. It contains reading inputs and writing outputs; not starting Python, imports, DVC and MLflow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from stages import layout, params
from stages.errors import UserError
from stages.pool import Pool
from stages.processes import Processes
from stages.scratch import clone_of, commit_of
from stages.shell import dvc
from stages.sweep import graph, memory_needed, tasks_for

STAGES = ("prune", "finetune", "evaluate")
LEVELS = 3
"""That are measured if none are named: the first of the sweep."""
SECONDS = Path(".scratch/compute.json")


def measure(levels: Sequence[str]) -> None:
    """Print wall time, compute and their ratio."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.overhead.processes import cost

    known = [level.key for level in params.load("sweep").sweep.levels]
    keys = list(levels) or known[:LEVELS]
    if unknown := set(keys) - set(known):
        raise UserError(f"{', '.join(sorted(unknown))}: no level of the sweep in params.yaml")
    layout.SCRATCH.mkdir(exist_ok=True)
    with clone_of(commit_of("HEAD"), layout.SCRATCH):
        dvc("checkout", "--with-deps", *(f"evaluate@{key}" for key in keys))
        Path(".scratch").mkdir(exist_ok=True)
        ours = {"PYTHONPATH": str(Path.cwd())}  # the clone's own code, as anyone runs it
        tracked = {
            "ESPALIER_TRACKING": "on",
            "MLFLOW_TRACKING_URI": f"sqlite:///{Path('.scratch/mlflow.db').absolute()}",
        }
        seconds = {}
        for what, variables in (("compute", ours), ("wall", ours | tracked)):
            cost([sys.executable, "-m", "benchmarks.overhead.sweep", what, *keys], Path.cwd(), variables)
            seconds[what] = json.loads(SECONDS.read_text(encoding="utf-8"))
    compute, wall = seconds["compute"], seconds["wall"]
    table = Table("levels", "wall, s", "compute, s", "wall / compute", title="overhead of a sweep, one level at a time")
    table.add_row(", ".join(keys), f"{wall:.1f}", f"{compute:.1f}", f"{wall / compute:.2f}")
    Console().print(table)


def swept(keys: Sequence[str]) -> float:
    """Seconds that the levels take in the clone, made again.

    Raises:
        UserError: a stage failed.
    """
    tasks = tasks_for(graph(), {f"{stage}@{key}" for stage in STAGES for key in keys})
    logs = Path(".scratch")
    pool = Pool(tasks, Processes(1, memory_needed, ["--force"]), logs=logs, show=lambda now: None)
    start = time.perf_counter()
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
    measured = {"compute": compute_seconds, "wall": swept}[sys.argv[1]](sys.argv[2:])
    SECONDS.write_text(json.dumps(measured), encoding="utf-8")
