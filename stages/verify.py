"""Recompute a level from its inputs, and compare what comes out with what is committed, bit by bit.

    python -m stages.verify                           the chosen level: its prune, finetune and evaluate stages
    python -m stages.verify l1-0.9 dense compare      other levels, baseline, dense, single stages
    python -m stages.verify --all                     every stage
    python -m stages.verify --from-data               with all that the level comes from: cleaning, training, …
    python -m stages.verify --rev v1.0                what another commit holds, by that commit's code

In:  a commit (HEAD): its code, params and dvc.lock; DVC's cache, for the inputs that are not recomputed.
Out: nothing. The stages run in a scratch clone, without DVC's run cache, and what they make is not cached. Exit
     status 0: every out is identical, timings left out; 1: one is not, and where it differs first is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages import fingerprints, layout, params
from stages.differences import first_difference
from stages.errors import UserError, command
from stages.files import read_json
from stages.pool import Pool, ordered
from stages.processes import Processes
from stages.scratch import clone_of, commit_of, run_git
from stages.shell import dvc
from stages.sweep import board, closure, graph, memory_needed, show_failures, tasks_for, workers
from stages.tracking.pipeline import Entry, Pipeline, split_name

SCRATCH = layout.SCRATCH / "verify"
TIMINGS = (layout.BENCHMARK,)
"""Outs that differ from run to run."""
EXECUTE = ("--force", "--no-run-cache", "--no-commit")
"""Options of `dvc repro`: run the command whatever the lock says, restore nothing, put nothing into the cache."""
DATA = ".dvc"
"""How files end by which DVC keeps data that no stage makes; it counts them among the stages."""
Outs = Mapping[str, Mapping[str, str]]
"""Stage → path → md5."""


@dataclass(frozen=True)
class Verdict:
    """What recomputing one stage came to."""

    stage: str
    compared: int
    """Outs, timings left out."""
    differences: Mapping[str, str]
    """Path → where it differs first."""
    inherited: str | None
    """An earlier stage that differs, so that this one had other inputs than the committed one."""


@partial(command, interrupted="interrupted: nothing was compared; the workspace and DVC's cache are as they were")
def main(arguments: Sequence[str] | None = None) -> None:
    """Recompute, compare and report."""
    args = _parse(arguments)
    commit = commit_of(args.rev)
    runtime = params.load("runtime").runtime
    logs = (SCRATCH / "logs").absolute()
    logs.mkdir(parents=True, exist_ok=True)
    with clone_of(commit, SCRATCH):
        # Another commit's params may have sections that are none of this code's: only these values are of interest.
        runtime = runtime.model_copy(update=params.read_yaml(params.PARAMS_FILE).get("runtime", {}))
        needs = graph()
        stages = _stages(args, needs)
        before = Pipeline(Path()).entries
        _check_out(_inputs(stages, before))
        _check_current(stages, before, commit)
        with board() as show:
            place = Processes(args.jobs or workers(runtime), memory_needed, EXECUTE)
            pool = Pool(tasks_for(needs, stages), place, logs=logs, show=show)
            pool.run()
        if unmade := [task.name for task in pool.tasks.values() if task.state != "done"]:
            show_failures(pool)
            raise UserError(f"not recomputed: {', '.join(unmade)}; logs are in {logs}")
        names = [name for name in ordered(needs) if name in stages]
        verdicts = _compare(names, _outs(before), _outs(Pipeline(Path()).entries), needs)
        _show(verdicts, commit, runtime)
    if any(verdict.differences for verdict in verdicts):
        raise SystemExit(1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.verify", description="Recompute levels and compare them with what is committed."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="levels, dense, baseline, stages; default: chosen")
    parser.add_argument("--all", action="store_true", help="every stage")
    parser.add_argument("--from-data", action="store_true", help="recompute what the targets come from as well")
    parser.add_argument("--rev", metavar="REV", help="commit to verify, uncommitted changes or not (default: HEAD)")
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="processes at a time (default: cores / threads)")
    args = parser.parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give 1 or more")
    if args.all and args.targets:
        raise UserError(f"--all is every stage: leave out {args.targets[0]}")
    return args


def _stages(args: argparse.Namespace, needs: Mapping[str, frozenset[str]]) -> set[str]:
    """The stages to recompute.

    Raises:
        UserError: a target is neither a stage nor has any.
    """
    if args.all:
        return {name for name in needs if not name.endswith(DATA)}
    found: set[str] = set()
    for target in args.targets or [layout.chosen()]:
        named = {name for name in needs if target in (name, split_name(name)[1])}
        if not named:
            keys = dict.fromkeys(key for name in needs if (key := split_name(name)[1]))
            raise UserError(f"{target} is no stage and no level of that commit; it has {', '.join(keys)}")
        found |= named
    return {name for name in closure(found, needs) if not name.endswith(DATA)} if args.from_data else found


def _inputs(stages: set[str], entries: Sequence[Entry]) -> list[str]:
    """What the stages read that neither they make nor git has: outs of others, and data with a .dvc file."""
    deps = {Path(path) for entry in entries if entry.name in stages for path in entry.deps}
    outs = {Path(path) for entry in entries if entry.name not in stages for path in entry.outs}
    outs |= {path for path in deps if Path(f"{path}.dvc").is_file()}
    wanted = {out for out in outs for dep in deps if out.is_relative_to(dep) or dep.is_relative_to(out)}
    return sorted(str(path) for path in wanted if not path.exists())


def _check_out(paths: Sequence[str]) -> None:
    """Have DVC bring files from its cache.

    Raises:
        UserError: it lacks one.
    """
    if not paths:
        return
    try:
        dvc("checkout", *paths)
    except UserError:
        missing = next((path for path in paths if not Path(path).exists()), paths[0])
        raise UserError(f"{missing} is not in DVC's cache as that commit has it: `dvc pull` it first") from None


def _check_current(stages: set[str], entries: Sequence[Entry], commit: str) -> None:
    """Refuse a commit whose dvc.lock does not hold the stages as its code, params and data make them.

    Raises:
        UserError: with a stage and what has changed of it.
    """
    recorded = {entry.name for entry in entries}
    made = {path for entry in entries if entry.name in stages for path in entry.outs}
    if unmade := sorted(stages - recorded):
        raise UserError(f"dvc.lock of {commit[:7]} has no {unmade[0]}: run `dvc repro`, and commit what it leaves")
    code = sorted(path for entry in entries if entry.name in stages for path in entry.deps)
    if edited := next((module for path in code for module in fingerprints.edited(Path(), path)), None):
        raise UserError(f"{edited} is not as {commit[:7]} has it in {layout.CODE}: run `dvc repro`, and commit it")
    for stage, changes in json.loads(dvc("status", "--json", *sorted(stages))).items():
        deps = {
            path: how
            for change in changes
            if isinstance(change, dict)
            for path, how in change.get("changed deps", {}).items()
            if not any(Path(out).is_relative_to(path) for out in made)
        }
        if absent := next((path for path, how in deps.items() if how == "deleted"), None):
            raise UserError(f"{absent}, which {stage} reads, is not in {commit[:7]}: `git add` or `dvc add` it")
        changed = [*deps, *(change for change in changes if isinstance(change, str))]
        if changed:
            raise UserError(
                f"{stage} is out of date in {commit[:7]} ({', '.join(changed[:3])}): run `dvc repro`, and commit it"
            )


def _outs(entries: Sequence[Entry]) -> Outs:
    return {
        entry.name: {
            path: md5
            for path, md5 in entry.outs.items()
            if not any(Path(path).is_relative_to(timing) for timing in TIMINGS)
        }
        for entry in entries
    }


def _compare(stages: Sequence[str], before: Outs, now: Outs, needs: Mapping[str, frozenset[str]]) -> list[Verdict]:
    """The verdict on each stage, in the order given, which has to put needs first."""
    differing = {
        stage: [path for path, md5 in before[stage].items() if now[stage].get(path) != md5] for stage in stages
    }
    found = _differences([path for stage in stages for path in differing[stage]])
    verdicts = []
    for stage in stages:
        earlier = closure(needs[stage], needs)
        inherited = next((other for other in stages if other in earlier and differing[other]), None)
        differences = {path: found[path] for path in differing[stage]}
        verdicts.append(Verdict(stage, len(before[stage]), differences, inherited))
    return verdicts


def _differences(paths: Sequence[str]) -> dict[str, str]:
    """Where recomputed outs differ from the committed ones, which take their places."""
    if not paths:
        return {}
    aside = Path(tempfile.mkdtemp(dir=Path().absolute().parent))
    for number, path in enumerate(paths):
        Path(path).rename(aside / f"{number}{Path(path).suffix}")
    run_git("checkout", "--quiet", "--force", "HEAD", "--", ".")
    found = {}
    for number, path in enumerate(paths):
        try:
            _check_out([path] if not Path(path).exists() else [])
        except UserError:
            found[path] = "md5 differs; to see where, `dvc pull` the committed one"
            continue
        where = first_difference(Path(path), aside / f"{number}{Path(path).suffix}")
        found[path] = where or "md5 in dvc.lock is not that of the committed file"
    return found


def _show(verdicts: Sequence[Verdict], commit: str, runtime: params.Runtime) -> None:
    """Print a line a stage, where each out differs first, and what may be the reason."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    width = max(len(verdict.stage) for verdict in verdicts)
    for verdict in verdicts:
        if not verdict.differences:
            console.print(f"{verdict.stage:{width}}  [green]identical[/]  {verdict.compared} outs")
            continue
        because = f", as {verdict.inherited} does, which it is made from" if verdict.inherited else ""
        count = f"{len(verdict.differences)} of {verdict.compared} outs"
        console.print(f"{verdict.stage:{width}}  [bold red]differs[/]    {count}{because}")
        for path, where in verdict.differences.items():
            console.print(f"    {path}: {where}", markup=False)
    first = next((verdict for verdict in verdicts if verdict.differences), None)
    if first is None:
        console.print(f"{commit[:7]}: identical")
        return
    path, where = next(iter(first.differences.items()))
    console.print(f"{commit[:7]}: differs first in {first.stage}: {path}: {where}", markup=False)
    for line in _reasons(runtime):
        console.print(f"    {line}", markup=False)


def _reasons(runtime: params.Runtime) -> Iterator[str]:
    """What is not as it was where the committed level was made, as far as it can be told."""
    from stages import machine

    here = machine.describe(runtime)
    file = layout.BENCHMARK / "machine.json"
    made = read_json(file) if file.is_file() else {}
    for name, value in here.items():
        if (was := made.get(name)) and was != value:
            yield f"{name}: {value} here, {was} where the benchmark of that commit was run"
    yield from machine.unlike_pins(Path())
    yield from (f"{variable} is set" for variable in machine.variables())
    unknown = "" if "device" in made else "; the commit does not say where it was made"
    yield f"here: {', '.join(f'{name} {value}' for name, value in here.items())}{unknown}"


if __name__ == "__main__":
    main()
