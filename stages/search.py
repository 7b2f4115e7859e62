"""Find the highest sparsity that still meets the target, by bisection.

    python -m stages.search                   (--method taylor: instead of params search.method)

In:  the project as it stands; params `search` (method, bounds, resolution) and `target` (metric, max_drop).
Out: every sparsity tried is a level like any other: a DVC experiment `search-METHOD-SPARSITY` (`dvc exp show`) and
     runs in MLflow. The workspace stays as it is; the last lines say how to add the found level to the sweep.

A level meets the target if its score on validation is at most `max_drop` below dense's. Levels that are known
already, from the sweep or from an earlier search with the same code, data and params, are not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from stages import experiments, params
from stages.errors import UserError, command
from stages.evaluation.comparison import NAMES, holds, percent
from stages.experiments import Result
from stages.files import digest
from stages.layout import Level
from stages.params import PARAMS_FILE, Params, Search

TABLE_COLUMNS = 100


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Search and report."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.search", description="Find the highest sparsity that still meets the target."
    )
    parser.add_argument("--method", help="how weights are chosen; default: params search.method")
    chosen = parser.parse_args(arguments).method
    settings = params.load("data", "model", "search", "sweep", "target")
    method = chosen or settings.search.method
    params.check_method(method)
    metric, max_drop = settings.target.metric, settings.target.max_drop
    name = f"validation_{metric}"

    def good(result: Result) -> bool:
        return holds(result.figures[name], result.dense[name], max_drop)

    print(f"{method}: sparsest level within {max_drop:g} {NAMES[metric]} of dense on validation", flush=True)
    files, origin = _files(settings), digest(PARAMS_FILE)
    results = experiments.in_workspace([level for level in settings.sweep.levels if level.method == method])
    low, high = bounds(settings.search, results, good)
    candidates = grid(settings.search.resolution, low, high)
    if not candidates:
        step = f"search.resolution {settings.search.resolution:g}"
        print(f"no multiple of {step} lies between {low:g} and {high:g}, the bounds as known")

    def attempt(sparsity: float) -> bool:
        if digest(PARAMS_FILE) != origin:
            raise UserError("params.yaml was changed during the search: run it again")
        level = Level(method, sparsity)
        result = experiments.earlier(level, files)
        if result is None:
            print(f"\n{level.key}: making it as a DVC experiment", flush=True)
            result = experiments.make(level, files)
        results.append(result)
        verdict = "holds" if good(result) else "does not hold"
        score, dense = result.figures[name], result.dense[name]
        print(f"{level.key}: {score:.2f} against {dense:.2f} of dense: {verdict}", flush=True)
        return good(result)

    bisect(candidates, attempt)
    _report(settings, method, results, good)


def bounds(search: Search, results: Sequence[Result], good: Callable[[Result], bool]) -> tuple[float, float]:
    """The interval to search, narrowed from params by the levels that are known.

    Returns:
        The highest sparsity known (or said by params) to hold, and the lowest one above it known not to.
    """
    known = {result.level.sparsity: good(result) for result in results}
    low = max([search.low, *(s for s, held in known.items() if held and s < search.high)])
    return low, min([search.high, *(s for s, held in known.items() if not held and s > low)])


def grid(resolution: float, low: float, high: float) -> list[float]:
    """Multiples of `resolution` strictly between the bounds, to 4 digits, so that levels have short names."""
    points = {round(i * resolution, 4) for i in range(round(1 / resolution) + 1)}
    return sorted(point for point in points if low < point < high)


def bisect(candidates: Sequence[float], attempt: Callable[[float], bool]) -> None:
    """Try candidates until the sparsest that holds and the next one, which does not, are known.

    Args:
        candidates: ascending.
        attempt: whether a candidate holds; taken to be true up to some point, and false from there on.
    """
    low, high = -1, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(candidates[middle]):
            low = middle
        else:
            high = middle


def _report(settings: Params, method: str, results: list[Result], good: Callable[[Result], bool]) -> None:
    """Print the tries, and what to do with the outcome."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    metric, search = settings.target.metric, settings.search
    name = f"validation_{metric}"
    best = max((result for result in results if good(result)), key=lambda r: r.level.sparsity, default=None)
    table = Table(box=box.SIMPLE_HEAD)
    headers = (
        "level",
        "sparsity",
        f"{NAMES[metric]}\nvalidation",
        "less\ndense",
        "holds",
        f"{NAMES[metric]}\ntest",
        "experiment",
    )
    for header in headers:
        table.add_column(
            header, justify="left" if header in ("level", "experiment") else "right", vertical="bottom", no_wrap=True
        )
    for result in sorted(results, key=lambda r: r.level.sparsity):
        score, dense = result.figures[name], result.dense[name]
        table.add_row(
            f"{'▶' if result is best else ' '} {result.level.key}",
            percent(result.level.sparsity),
            f"{score:.2f}",
            f"{score - dense:+.2f}",
            "yes" if good(result) else "no",
            f"{result.figures[metric]:.2f}",
            result.experiment or "(in the workspace)",
            style="bold green" if result is best else None,
        )
    console = Console()
    console.width = max(console.width, TABLE_COLUMNS)
    console.print(table)
    if not results:
        _say(console, "Nothing was tried: widen search.low and search.high, or lower search.resolution.")
        return
    if best is None:
        _say(
            console,
            f"No level of {method} between {search.low:g} and {search.high:g} is within {settings.target.max_drop:g} "
            f"{NAMES[metric]} of dense. Lower search.low, raise target.max_drop, or fine-tune for longer.",
        )
        return
    _say(console, f"▶ {best.level.key} is the sparsest level that holds, to {search.resolution:g}.")
    if not any(not good(result) and result.level.sparsity > best.level.sparsity for result in results):
        _say(console, f"Nothing sparser was tried: raise search.high ({search.high:g}) to look further.")
    if best.experiment is None:
        return
    missing = [] if method in settings.sweep.method else [f"{method} to sweep.method"]
    missing += [f"{best.level.sparsity} to sweep.sparsity"]
    _say(
        console,
        f"To keep it in the sweep: add {' and '.join(missing)} in params.yaml, then `dvc repro`; this level is "
        f"restored from DVC's cache.\nTo have it alone in the workspace: dvc exp apply {best.experiment}",
    )


def _say(console: object, text: str) -> None:
    console.print(text, highlight=False, markup=False)  # type: ignore[attr-defined]


def _files(settings: Params) -> list[str]:
    """Data and checkpoints that params name and that may be local files.

    Data under DVC is left out: the graph depends on it, so DVC brings it along. Checkpoints may be outside of it.
    """
    data = settings.data.path
    return settings.model.checkpoints + ([] if Path(f"{data}.dvc").exists() else [data])


if __name__ == "__main__":
    main()
