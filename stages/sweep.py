"""Bring the whole pipeline up to date, levels side by side.

    python -m stages.sweep [-j N] [TARGET ...]
    python -m stages.sweep --scheduler ADDRESS [TARGET ...]     by the workers of a Dask cluster (docs/cluster.md)

What `dvc repro` does one stage after another, done by up to N processes at a time: by default one for every
`runtime.threads` cores, and fewer while memory is short. Which of them compute at the same time does not change a bit
of any result.

In:  the graph of dvc.yaml; targets are names of its stages, such as evaluate@magnitude-0.7, made with all they need.
Out: what `dvc repro` leaves. What the stages print is in .scratch/sweep, a file for each process. If a stage fails, all
     that does not need it is still made, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

from filelock import FileLock, Timeout

from stages import code, layout, machine, params
from stages.errors import UserError, command
from stages.params import Runtime
from stages.pool import Place, Pool, Task, ordered
from stages.processes import Processes
from stages.shell import dvc
from stages.tracking.forked import recorders

LOGS = layout.SCRATCH / "sweep"
BASE_BYTES = 2**30
"""Of a stage's process besides the model: libraries, data, activations of a small batch."""
COPIES = 6
"""Of the weights that training holds: the weights, gradients, two moments, one in flight, one to compare with."""
LINES_SHOWN = 12
"""Of what a failed stage printed."""


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is out of date, and report."""
    parser = argparse.ArgumentParser(description="Bring the pipeline up to date, levels side by side.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages to make, with all they need")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="processes at a time (default: cores / threads)")
    parser.add_argument("--pull", action="store_true", help="fetch from the DVC remote what is missing")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run them on the Dask cluster of this scheduler")
    parser.add_argument("--repository", metavar="URL", help="what its workers clone (default: the git remote origin)")
    args = parser.parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give 1 or more")
    if args.scheduler and (args.jobs or args.pull):
        raise UserError("--scheduler runs a level a worker, with the DVC remote: leave --jobs and --pull out")

    LOGS.mkdir(parents=True, exist_ok=True)
    with _alone():
        needs = graph()
        tasks = _tasks(needs, args.targets)
        if not tasks:
            print("Data and pipelines are up to date.")
            return
        with _place(args, tasks, needs) as place, board() as show:
            pool = Pool(tasks, place, logs=LOGS, show=show)
            start = time.monotonic()
            with recorders():
                pool.run()
    _report(pool, time.monotonic() - start)


@contextmanager
def _place(args: argparse.Namespace, tasks: Sequence[Task], needs: Mapping[str, frozenset[str]]) -> Iterator[Place]:
    """Where the tasks are to run: processes of this machine, or workers of a cluster."""
    settings = params.load("runtime")
    if not args.scheduler:
        if hint := machine.left_alone(settings.runtime):
            print(hint, flush=True)
        options = ["--pull"] if args.pull else []
        yield Processes(args.jobs or workers(settings.runtime), memory_needed, options)
        return
    from stages.cluster.place import workers_at

    names = {task.name for task in tasks}
    if data := next((name for name in sorted(names) if name.endswith(".dvc")), None):
        raise UserError(f"{data.removesuffix('.dvc')} is not as {data} has it: `dvc add` it, commit, and `dvc push`")
    with workers_at(args.scheduler, args.repository, sorted(closure(names, needs) - names)) as place:
        yield place


def graph() -> dict[str, frozenset[str]]:
    """Every stage of the project, in the order of dvc.yaml, with the stages it needs.

    Raises:
        UserError: DVC cannot read the project.
    """
    needs: dict[str, set[str]] = {}
    for line in dvc("dag", "--dot").splitlines():
        names = re.findall(r'"([^"]+)"', line)
        for name in names:
            needs.setdefault(name, set())
        if len(names) == 2:
            needs[names[1]].add(names[0])
    return {name: frozenset(others) for name, others in needs.items()}


def _tasks(needs: Mapping[str, frozenset[str]], targets: Sequence[str]) -> list[Task]:
    """What is out of date among the targets and what they need, or comes after something that is."""
    for target in targets:
        if target not in needs:
            raise UserError(f"{target} is no stage: `dvc stage list` names them")
    wanted = closure(targets, needs) if targets else set(needs)
    stale = _stale(targets)
    if code.STAGE in stale & wanted:
        dvc("repro", "--single-item", code.STAGE)  # in no time; only then can be told which stages an edit concerns
        stale = _stale(targets)
    for name in ordered(needs):
        if needs[name] & stale:
            stale.add(name)
    return tasks_for(needs, stale & wanted)


def _stale(targets: Sequence[str]) -> set[str]:
    """Stages that are out of date in themselves, among the targets and what they need; of all if there are none."""
    return set(json.loads(dvc("status", "--json", *targets, *(["--with-deps"] if targets else []))))


def tasks_for(needs: Mapping[str, frozenset[str]], stages: Set[str]) -> list[Task]:
    """These stages in the order in which a pool is to take them.

    Args:
        needs: what every stage of the project needs, as `graph` gives it.
        stages: the ones to run.
    """
    todo = sorted((name for name in needs if name in stages), key=_turn)
    return [Task(name, needs[name], _key(name)) for name in ordered({name: needs[name] & stages for name in todo})]


def closure(targets: Iterable[str], needs: Mapping[str, frozenset[str]]) -> set[str]:
    """The targets and all that they need, directly or not."""
    found: set[str] = set()
    left = list(targets)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += needs[name]
    return found


def _key(name: str) -> str:
    """The level that a stage makes, "" for what levels share."""
    return name.partition("@")[2]


def _turn(name: str) -> float:
    """Levels take turns by sparsity: two of one method, begun together, would both do its penalised training."""
    sparsity = _key(name).rpartition("-")[2]
    try:
        return float(sparsity) if sparsity else -1.0
    except ValueError:
        return 0.0


def workers(runtime: Runtime) -> int:
    """As many stages as the cores have room for; one at a time on a GPU, which they would share."""
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, machine.cores() // (runtime.threads * runtime.processes))


def memory_needed() -> int:
    """Bytes of memory that a level is thought to take."""
    folder = layout.model_folder(layout.BASELINE)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    return BASE_BYTES + COPIES * weights


@contextmanager
def _alone() -> Iterator[None]:
    """Keep a second sweep of this project out.

    Raises:
        UserError: another one runs.
    """
    try:
        with FileLock(LOGS / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError("another sweep of this project is running: wait for it to end") from None


@contextmanager
def board() -> Iterator[Callable[[Sequence[Task]], None]]:
    """A live table on a terminal; elsewhere a line for each stage that ends."""
    from rich.console import Console
    from rich.live import Live

    from stages.board import table

    console = Console()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda tasks: live.update(table(tasks, time.monotonic()))
        return
    told: set[str] = set()

    def tell(tasks: Sequence[Task]) -> None:
        for task in tasks:
            if task.state in ("done", "kept", "failed", "skipped") and task.name not in told:
                told.add(task.name)
                took = f" in {task.seconds:.0f} s" if task.state == "done" else ""
                print(f"{len(told)}/{len(tasks)} {task.name} {task.state}{took}", flush=True)

    yield tell


def _report(pool: Pool, seconds: float) -> None:
    tasks = pool.tasks.values()
    failed = [task.name for task in tasks if task.state == "failed"]
    skipped = [task.name for task in tasks if task.state == "skipped"]
    made = sum(task.state == "done" for task in tasks)
    minutes, left = divmod(round(seconds), 60)
    print(f"{made} stages made in {minutes} min {left} s", flush=True)
    show_failures(pool)
    if failed:
        rest = f"; not made, since they need it: {', '.join(skipped)}" if skipped else ""
        raise UserError(f"failed: {', '.join(failed)}{rest}. What was finished is kept; logs are in {LOGS}")


def show_failures(pool: Pool) -> None:
    """Print what failed stages said last."""
    for name, lines in pool.said.items():
        print(f"\n{name} failed:", file=sys.stderr)
        for line in lines[-LINES_SHOWN:]:
            print(f"    {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
