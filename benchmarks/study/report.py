"""The tables of docs/study.md, from rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from benchmarks import tables
from benchmarks.intervals import Estimate, estimate
from benchmarks.study.plan import ONE_SHOT, Cell, Plan
from benchmarks.study.results import Row
from stages.errors import UserError
from stages.layout import DENSE
from stages.params import Method

Rows = Mapping[Cell, Row]
Measure = Callable[[Row, Row], float]
"""A figure of a level's row and of its control's, of the same seed."""


def rewrite(page: Path, plan: Plan, rows: Rows) -> None:
    """Put the tables of these rows into a page.

    Raises:
        UserError: the page is missing, or asks for a table there is none of.
    """
    tables.rewrite(page, "study", _maker(plan, rows))


def filled(text: str, plan: Plan, rows: Rows) -> str:
    """A page with its tables made anew.

    Raises:
        UserError: it asks for a table there is none of.
    """
    return tables.filled(text, "study", _maker(plan, rows))


def _maker(plan: Plan, rows: Rows) -> tables.Make:
    def make(name: str, arguments: list[str]) -> list[str]:
        if name not in TABLES or not arguments or arguments[0] not in plan.languages:
            raise UserError(f"no such table: choose from {', '.join(TABLES)}, then a language")
        if unknown := [word for word in arguments[1:] if not _is_number(word) and word not in plan.regimes]:
            raise UserError(f"{unknown[0]} is no regime of the plan")
        return TABLES[name](plan, rows, *arguments)

    return make


def bleu(plan: Plan, rows: Rows, language: str, regime: str) -> list[str]:
    """BLEU of every method and sparsity under a regime, the control above."""
    return _by_sparsity(plan, rows, language, regime, lambda row, _: row.bleu, Estimate.show, dense=True)


def difference(plan: Plan, rows: Rows, language: str, regime: str) -> list[str]:
    """BLEU less that of the same seed's control, paired."""
    return _by_sparsity(
        plan, rows, language, regime, lambda row, dense: row.bleu - dense.bleu, lambda found: found.show(signed=True)
    )


def slots(plan: Plan, rows: Rows, language: str, regime: str) -> list[str]:
    """Slot error rate."""
    return _by_sparsity(
        plan, rows, language, regime, lambda row, _: row.slot_error_rate, lambda found: found.show(3), dense=True
    )


def kept(plan: Plan, rows: Rows, language: str, *regimes: str) -> list[str]:
    """Share of the control's BLEU that each method keeps under each regime; paired, mean over seeds of the ratio.

    Controls are lines of their own, with their BLEU.
    """
    wanted = [cell for cell in rows if cell.language == language and cell.regime in regimes]
    sparsities = sorted({cell.sparsity for cell in wanted if cell.method != DENSE})
    lines = tables.header(["regime", "method", *(tables.percent(sparsity) for sparsity in sparsities)], left=2)
    for regime in regimes:
        if dense := _over_seeds(plan, rows, Cell(language, 0, DENSE, 0, regime), lambda row, _: row.bleu):
            lines.append(tables.line([f"`{regime}`", "dense, BLEU", dense.show(), *[""] * (len(sparsities) - 1)]))
        for method in _methods(wanted, regime):
            cells = [Cell(language, 0, method, sparsity, regime) for sparsity in sparsities]
            found = [_over_seeds(plan, rows, cell, lambda row, dense: row.bleu / dense.bleu) for cell in cells]
            shown = [one.show(scale=100, unit=" %") if one else tables.ABSENT for one in found]
            lines.append(tables.line([f"`{regime}`", f"`{method}`", *shown]))
    return lines


def validation(plan: Plan, rows: Rows, language: str, sparsity: str, *regimes: str) -> list[str]:
    """What a choice between regimes looks at, validation BLEU, beside what it comes to on test. Best first."""
    lines = tables.header(["regime", "method", "validation BLEU", "test BLEU", "steps"], left=2)
    found = []
    for cell in dict.fromkeys(_seedless(cell) for cell in rows):
        if cell.language == language and cell.sparsity == float(sparsity) and cell.regime in regimes:
            score = _over_seeds(plan, rows, cell, lambda row, _: row.validation_bleu)
            test = _over_seeds(plan, rows, cell, lambda row, _: row.bleu)
            if score and test:
                steps = next(row.steps for one, row in rows.items() if _seedless(one) == cell)
                found.append(
                    (score.mean, [f"`{cell.regime}`", f"`{cell.method}`", score.show(), test.show(), f"{steps}"])
                )
    return lines + [tables.line(cells) for _, cells in sorted(found, key=lambda one: -one[0])]


def losses(plan: Plan, rows: Rows, language: str, regime: str, sparsity: str) -> list[str]:
    """Losses at a sparsity, and the gap between test and training, which overfitting would widen."""
    measures: list[tuple[str, Measure]] = [
        ("training", lambda row, _: row.train_loss),
        ("validation", lambda row, _: row.validation_loss),
        ("test", lambda row, _: row.loss),
        ("test − training", lambda row, _: row.loss - row.train_loss),
        ("… less dense's", lambda row, dense: row.loss - row.train_loss - (dense.loss - dense.train_loss)),
    ]
    lines = tables.header(["method", *(name for name, _ in measures)])
    share = float(sparsity)
    wanted = [cell for cell in rows if cell.language == language and cell.sparsity in (share, 0)]
    for method in [DENSE, *_methods(wanted, regime)]:
        cell = Cell(language, 0, method, 0 if method == DENSE else share, _regime(plan, method, regime))
        found = [_over_seeds(plan, rows, cell, measure) for _, measure in measures]
        shown = [one.show(3) if one else tables.ABSENT for one in found]
        if method == DENSE:
            shown[-1] = ""
        lines.append(tables.line([f"`{method}`", *shown]))
    return lines


def cost(plan: Plan, rows: Rows, language: str, regime: str) -> list[str]:
    """CPU seconds of the prune and finetune stages: medians of all rows, of the former the largest as well.

    Of a method that trains before it prunes only the first sparsity has that training in it: the largest.
    """
    lines = tables.header(["method", "prune, median", "prune, largest", "finetune, median", "rows"])
    wanted = [cell for cell in rows if cell.language == language]
    for method in [DENSE, *_methods(wanted, regime)]:
        own = [rows[c] for c in wanted if c.method == method and c.regime == _regime(plan, method, regime)]
        if own:
            prune, tune = sorted(row.prune_seconds for row in own), sorted(row.finetune_seconds for row in own)
            middle = len(own) // 2
            shown = [f"{prune[middle]:.0f}", f"{prune[-1]:.0f}", f"{tune[middle]:.0f}", f"{len(own)}"]
            lines.append(tables.line([f"`{method}`", *(["", "", *shown[2:]] if method == DENSE else shown)]))
    return lines


TABLES: dict[str, Callable[..., list[str]]] = {
    "bleu": bleu,
    "difference": difference,
    "slots": slots,
    "kept": kept,
    "validation": validation,
    "losses": losses,
    "cost": cost,
}


def _by_sparsity(
    plan: Plan,
    rows: Rows,
    language: str,
    regime: str,
    measure: Measure,
    show: Callable[[Estimate], str],
    *,
    dense: bool = False,
) -> list[str]:
    """A line a method, a column a sparsity."""
    wanted = [cell for cell in rows if cell.language == language and cell.regime == regime]
    sparsities = sorted({cell.sparsity for cell in wanted if cell.method != DENSE})
    lines = tables.header(["method", *(tables.percent(sparsity) for sparsity in sparsities)])
    if dense and (control := _over_seeds(plan, rows, Cell(language, 0, DENSE, 0, plan.control(regime)), measure)):
        name = "baseline" if regime == ONE_SHOT else DENSE
        lines.append(tables.line([f"`{name}`", show(control), *[""] * (len(sparsities) - 1)]))
    for method in _methods(wanted, regime):
        cells = [Cell(language, 0, method, sparsity, regime) for sparsity in sparsities]
        found = [_over_seeds(plan, rows, cell, measure) for cell in cells]
        lines.append(tables.line([f"`{method}`", *(show(one) if one else tables.ABSENT for one in found)]))
    return lines


def _over_seeds(plan: Plan, rows: Rows, cell: Cell, measure: Measure) -> Estimate | None:
    """The mean of a figure over the seeds that both the cell and its control have been made with."""
    values = []
    for own, row in rows.items():
        if _seedless(own) == _seedless(cell):
            control = rows.get(Cell(own.language, own.seed, DENSE, 0, plan.control(own.regime)))
            if control is not None:
                values.append(measure(row, control))
    return estimate(values)


def _methods(wanted: Sequence[Cell], regime: str) -> list[str]:
    """Methods with a row of a regime, in the order of params."""
    return [method for method in get_args(Method) if any(c.method == method and c.regime == regime for c in wanted)]


def _regime(plan: Plan, method: str, regime: str) -> str:
    return plan.control(regime) if method == DENSE else regime


def _seedless(cell: Cell) -> Cell:
    return Cell(cell.language, 0, cell.method, cell.sparsity, cell.regime)


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdigit()
