"""The study over training seeds: its plan, intervals, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks.intervals import estimate
from benchmarks.study import plan, report, results
from benchmarks.study.plan import Cell
from benchmarks.study.results import Row
from benchmarks.study.workspace import fingerprint, settings
from stages.errors import UserError

PLAN = Path("benchmarks/study.yaml")
ROWS = Path("benchmarks/study.csv")


def row(seed: int, method: str, sparsity: float, bleu: float, params: str = "a") -> Row:
    return Row("en", seed, method, sparsity, "fine_tuned", bleu, bleu, 0.1, 1.0, 1.0, 0.5, 10, 1.0, 1.0, params)


def test_the_t_interval_of_three_values() -> None:
    """By hand: mean 2, s = 1, t(0.975, 2) = 4.3027, so 4.3027 / sqrt(3) = 2.4842."""
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2
    assert found.half_width == pytest.approx(2.4842, abs=1e-4)
    assert found.show(2, signed=True) == "+2.00 ± 2.48 (3)"


def test_one_seed_has_no_interval() -> None:
    found = estimate([-1.5])
    assert found is not None
    assert found.show() == "\N{MINUS SIGN}1.5 (1)"
    assert estimate([]) is None


SEEDS = (42, 1, 2, 3, 4)


def test_the_plan_has_five_seeds_of_every_criterion_on_the_default_data() -> None:
    from typing import get_args

    from stages.params import Method
    from stages.pruning import criterion

    cells = set(plan.load(PLAN).cells())
    for method in get_args(Method):
        if criterion.find(method).structure:  # its sparsities are sizes: docs/structure.md
            continue
        regimes = ("fine_tuned",) if method == "movement" else ("one_shot", "fine_tuned")  # it learns its masks
        for seed, sparsity, regime in product(SEEDS, (0.5, 0.7, 0.8, 0.9, 0.95, 0.97), regimes):
            assert Cell("en", seed, method, sparsity, regime) in cells


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_plan_has_five_seeds_of_the_aims_in_two_languages(language: str) -> None:
    chosen = plan.load(PLAN)
    cells, regime = set(chosen.cells()), "long-rate-2e-3-ramp-0.3"
    for seed, sparsity, method in product(SEEDS, (0.9, 0.95, 0.97), ("movement", "taylor")):
        assert Cell(language, seed, method, sparsity, regime) in cells
        assert Cell(language, seed, "dense", 0, chosen.control(regime)) in cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("languages: {en: []}\nparams: {}\nregimes: {one_shot: {}}\nblocks: []\n", "blocks"),
        (
            "languages: {en: []}\nparams: {}\nregimes: {one_shot: {}}\n"
            "blocks: [{language: [en], seed: [1], sparsity: [0.5], method: [taylor], regime: [other]}]\n",
            "other is no regime",
        ),
        (
            "languages: {en: []}\nparams: {}\nregimes: {one_shot: {}}\n"
            "blocks: [{language: [fr], seed: [1], sparsity: [0.5], method: [taylor], regime: [one_shot]}]\n",
            "fr is no language",
        ),
    ],
)
def test_wrong_plans_end_in_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        plan.load(tmp_path / "study.yaml")


def test_rows_of_older_params_are_left_out() -> None:
    """Those of another seed too: a mean is over one setting."""
    rows = [row(42, "taylor", 0.9, 1.0, "old"), row(1, "taylor", 0.9, 2.0, "old"), row(1, "taylor", 0.9, 3.0, "new")]
    assert {cell.seed: found.bleu for cell, found in results.latest(rows).items()} == {1: 3.0}


def test_rows_are_of_the_params_that_the_plan_has_now() -> None:
    """If not, after a param was added or its value changed: add it to `later`, or remove rows that it makes others."""
    chosen = plan.load(PLAN)
    for found in {replace(row.cell, seed=0): row for row in results.read(ROWS)}.values():
        assert found.params == fingerprint(chosen, settings(chosen, found.cell, Path.cwd()), found.cell), found.cell


def test_params_that_came_later_change_no_digest_at_the_value_they_stand_for() -> None:
    chosen, cell = plan.load(PLAN), Cell("en", 42, "magnitude", 0.9, "fine_tuned")
    made = settings(chosen, cell, Path.cwd())
    without = chosen.model_copy(update={"later": {}})
    sparse = made.model_copy(update={"finetune": made.finetune.model_copy(update={"storage": "sparse"})})
    later = chosen.model_copy(update={"later": {"finetune.storage": "dense"}})
    known = {fingerprint(with_, values, cell) for with_ in (without, later) for values in (made, sparse)}
    assert len(known) == 3
    assert fingerprint(later, sparse, cell) == fingerprint(without, sparse, cell)


def test_the_page_has_the_tables_of_the_rows() -> None:
    page = Path("docs/study.md").read_text(encoding="utf-8")
    assert report.filled(page, plan.load(PLAN), results.latest(results.read(ROWS))) == page
