"""The study over training seeds: its plan, what is still to be made, intervals and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study import plan, report, results
from benchmarks.study.plan import Cell
from benchmarks.study.results import Row
from benchmarks.study.statistics import estimate
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


def test_a_control_comes_before_its_levels_and_no_cell_twice() -> None:
    cells = plan.load(PLAN).cells()
    assert len(cells) == len(set(cells))
    loaded = plan.load(PLAN)
    for place, cell in enumerate(cells):
        control = Cell(cell.language, cell.seed, "dense", 0, loaded.control(cell.regime))
        assert cells.index(control) <= place


def test_the_plan_has_five_seeds_of_every_criterion_in_two_languages() -> None:
    from typing import get_args

    from stages.params import Method

    cells = set(plan.load(PLAN).cells())
    for method in get_args(Method):
        for language in ("en", "zh"):
            for seed in (42, 1, 2, 3, 4):
                for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95, 0.97):
                    assert Cell(language, seed, method, sparsity, "fine_tuned") in cells


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


def test_rows_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "study.csv"
    rows = [row(42, "taylor", 0.9, 48.125), row(1, "dense", 0.0, 50.0)]
    for one in rows:
        results.append(path, one)
    assert results.read(path) == rows
    path.write_text(path.read_text().replace("48.125", "much"))
    with pytest.raises(UserError, match="line 2"):
        results.read(path)


def test_rows_of_older_params_are_left_out() -> None:
    """Those of another seed too: a mean is over one setting."""
    rows = [row(42, "taylor", 0.9, 1.0, "old"), row(1, "taylor", 0.9, 2.0, "old"), row(1, "taylor", 0.9, 3.0, "new")]
    assert {cell.seed: found.bleu for cell, found in results.latest(rows).items()} == {1: 3.0}


def test_differences_are_paired_by_seed() -> None:
    """Seeds 1 and 2 lose 1 and 2 BLEU; seed 3 has no control, and so no difference."""
    rows = [
        row(1, "dense", 0.0, 50.0),
        row(2, "dense", 0.0, 40.0),
        *(row(seed, "taylor", 0.9, bleu) for seed, bleu in ((1, 49.0), (2, 38.0), (3, 10.0))),
    ]
    page = "before\n<!-- study: difference en fine_tuned -->\nold\n<!-- end -->\nafter\n"
    filled = report.filled(page, plan.load(PLAN), results.latest(rows))
    assert "| `taylor` | \N{MINUS SIGN}1.5 ± 6.4 (2) |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert report.filled(filled, plan.load(PLAN), results.latest(rows)) == filled


def test_a_page_that_asks_for_no_table_is_refused() -> None:
    with pytest.raises(UserError, match="no such table"):
        report.filled("<!-- study: nothing en -->\n<!-- end -->\n", plan.load(PLAN), {})


def test_the_page_has_the_tables_of_the_rows() -> None:
    page = Path("docs/study.md").read_text(encoding="utf-8")
    assert report.filled(page, plan.load(PLAN), results.latest(results.read(ROWS))) == page
