"""The tables of docs/benchmark.md, from rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

from benchmarks import tables
from benchmarks.intervals import estimate
from benchmarks.pruning import subjects, ways
from benchmarks.pruning.results import DENSE, Cell, Row
from stages.errors import UserError

Rows = Mapping[Cell, Row]
MEBIBYTE = 2**20


def rewrite(page: Path, rows: Rows) -> None:
    """Put the tables of these rows into a page.

    Raises:
        UserError: the page is missing, or asks for a table there is none of.
    """
    tables.rewrite(page, "pruning", _maker(rows))


def filled(text: str, rows: Rows) -> str:
    """A page with its tables made anew.

    Raises:
        UserError: it asks for a table there is none of.
    """
    return tables.filled(text, "pruning", _maker(rows))


def setup(rows: Rows, model: str) -> list[str]:
    """What the rows of a model were made with, and how often."""
    own = [row for row in rows.values() if row.model == model]
    lines = [f"- {machine}; {versions}" for machine, versions in dict.fromkeys((r.machine, r.versions) for r in own)]
    repeats = [len(found) for found in _repeats(rows, model).values()]
    if repeats:
        eligible, size = own[0].eligible, own[0].model_bytes
        lines.append(f"- {eligible / 1e6:.1f}M eligible weights; the model takes {size / MEBIBYTE:.0f} MiB")
        at_random = "changes to weights" if subjects.SUBJECTS[model].trained else "weights"
        lines.append(f"- seed {subjects.SEED}: of {at_random}, and of the order of texts; repeats have the next")
        lines.append(f"- each side of a line measured {min(repeats)} to {max(repeats)} times")
    return lines


def cost(rows: Rows, model: str) -> list[str]:
    """CPU seconds and peak extra memory of both sides: medians over repeats; the ratio is the median of a repeat's."""
    names = ["method", "level", "beside", "ours, s", "other, s", "ratio", "ours, MiB", "other, MiB"]
    lines = tables.header(names, left=3)
    for method, level in product(ways.WAYS, ways.LEVELS):
        library = ways.other(method, level)
        pairs = [_pair(rows, cell) for cell in _repeats(rows, model).get((method, level), [])]
        if library and pairs:
            mine, other = zip(*pairs, strict=True)
            seconds = [statistics.median(row.cpu_seconds for row in side) for side in (mine, other)]
            ratio = statistics.median(a.cpu_seconds / b.cpu_seconds for a, b in pairs)
            shown = [*(f"{s:.1f}" for s in seconds), f"{ratio:.2f}", _mebibytes(mine), _mebibytes(other)]
            lines.append(tables.line([f"`{method}`", _level(level), f"`{library}`", *shown]))
    return lines


def quality(rows: Rows, model: str) -> list[str]:
    """Perplexity of both sides, and the difference of the loss; and what was pruned.

    The interval is over repeats, which have calibration texts of their own; of one repeat, over held texts.
    """
    names = ["ours", "other", "loss, ours − other", "repeats", "zeros, ours", "zeros, other"]
    lines = tables.header(["method", "level", "beside", *names], left=3)
    dense = rows.get(Cell(model, DENSE, "0", DENSE, 0))
    if dense:
        lines.append(tables.line(["`dense`", "", "", _perplexity(dense), "", "", "", "", ""]))
    for method, level in product(ways.WAYS, ways.LEVELS):
        library = ways.other(method, level)
        pairs = [_pair(rows, cell) for cell in _repeats(rows, model).get((method, level), [])]
        judged = [(mine, other) for mine, other in pairs if mine.losses and other.losses]
        if not library or not judged:
            continue
        mine, other = judged[0]
        differences = [statistics.fmean(a.nats) - statistics.fmean(b.nats) for a, b in judged]
        if len(judged) == 1:
            differences = [a - b for a, b in zip(mine.nats, other.nats, strict=True)]
        found = estimate(differences)
        if found is None or found.half_width is None:
            continue
        sign = f"{found.mean:+.4f}".replace("-", "\N{MINUS SIGN}")
        shown = [_perplexity(*side) for side in zip(*judged, strict=True)]
        shown += [f"{sign} ± {found.half_width:.4f}", f"{len(judged)}"]
        zeros = [f"{100 * row.zeros / row.eligible:.4f} %" for row in (mine, other)]
        lines.append(tables.line([f"`{method}`", _level(level), f"`{library}`", *shown, *zeros]))
    return lines


TABLES: dict[str, Callable[[Rows, str], list[str]]] = {"setup": setup, "cost": cost, "quality": quality}


def _maker(rows: Rows) -> tables.Make:
    def make(name: str, arguments: list[str]) -> list[str]:
        if name not in TABLES or len(arguments) != 1 or arguments[0] not in subjects.SUBJECTS:
            raise UserError(
                f"no such table: choose from {', '.join(TABLES)}, then a model of {', '.join(subjects.SUBJECTS)}"
            )
        return TABLES[name](rows, arguments[0])

    return make


def _repeats(rows: Rows, model: str) -> dict[tuple[str, str], list[Cell]]:
    """Our cells of a model whose other side has been measured as well, by method and level."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in rows:
        if cell.model == model and cell.library == ways.OURS and _beside(cell) in rows:
            found.setdefault((cell.method, cell.level), []).append(cell)
    return found


def _pair(rows: Rows, cell: Cell) -> tuple[Row, Row]:
    return rows[cell], rows[_beside(cell)]


def _beside(cell: Cell) -> Cell:
    """The other side's cell."""
    return Cell(cell.model, cell.method, cell.level, ways.other(cell.method, cell.level) or "", cell.repeat)


def _perplexity(*repeats: Row) -> str:
    """Of the mean loss over repeats."""
    return f"{math.exp(statistics.fmean(statistics.fmean(row.nats) for row in repeats)):.1f}"


def _mebibytes(repeats: Iterable[Row]) -> str:
    """Median of the peak extra memory, where it was measured."""
    found = [row.extra_bytes for row in repeats if row.extra_bytes is not None]
    return f"{statistics.median(found) / MEBIBYTE:.0f}" if found else tables.ABSENT


def _level(level: str) -> str:
    return level if level == ways.GROUP else tables.percent(float(level))
