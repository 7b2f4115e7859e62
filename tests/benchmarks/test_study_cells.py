"""The study: what decides a cell, that it goes on where it was stopped, and a small one for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from shared import ROOT, SMALL_RUN

from benchmarks import rows as csv_rows
from benchmarks.study import __main__ as study
from benchmarks.study import plan, report, results
from benchmarks.study.plan import Cell
from benchmarks.study.results import Row
from benchmarks.study.workspace import fingerprint, settings
from stages.errors import UserError

VALUES = {
    "languages": {"en": ["multiwoz"], "zh": ["crosswoz"]},
    "params": {"runtime": {"threads": 1, "precision": "fp32"}, "evaluate": {"num_beams": 1}},
    "regimes": {
        "one_shot": {},
        "fine_tuned": {},
        "ramped": {"params": {"finetune": {"ramp": 0.3}}, "control": "fine_tuned"},
    },
    "blocks": [
        {
            "language": ["en"],
            "seed": [42, 1],
            "sparsity": [0.9],
            "method": ["magnitude"],
            "regime": ["one_shot", "fine_tuned"],
        },
        {
            "language": ["en"],
            "seed": [42],
            "sparsity": [0.9, 0.5],
            "method": ["magnitude"],
            "regime": ["fine_tuned", "ramped"],
        },
    ],
}


def row(method: str = "magnitude", seed: int = 42, bleu: float = 40.0, regime: str = "fine_tuned", **other) -> Row:
    sparsity = 0 if method == "dense" else 0.9
    figures = dict.fromkeys(("validation_bleu", "slot_error_rate", "loss", "validation_loss", "train_loss"), 1.0)
    taken = {"steps": 240, "prune_seconds": 2.0, "finetune_seconds": 30.0, "params": "abc"}
    return Row("en", seed, method, sparsity, regime, bleu, **{**figures, **taken, **other})


def by_cell(*rows: Row) -> dict[Cell, Row]:
    return {one.cell: one for one in rows}


def test_cells_are_made_once_controls_first():
    cells = plan.Plan.model_validate(VALUES).cells()
    seed_42 = [cell for cell in cells if cell.seed == 42]
    assert seed_42 == [
        Cell("en", 42, "dense", 0, "one_shot"),
        Cell("en", 42, "dense", 0, "fine_tuned"),
        Cell("en", 42, "magnitude", 0.9, "one_shot"),
        Cell("en", 42, "magnitude", 0.9, "fine_tuned"),
        Cell("en", 42, "magnitude", 0.9, "ramped"),
        Cell("en", 42, "magnitude", 0.5, "fine_tuned"),
        Cell("en", 42, "magnitude", 0.5, "ramped"),
    ]
    assert [cell.seed for cell in cells] == [42] * 4 + [1] * 4 + [42] * 3


def test_the_project_s_plan_fits_its_params():
    chosen = plan.load(ROOT / "benchmarks" / "study.yaml")
    kinds = {(cell.language, cell.regime): cell for cell in chosen.cells()}
    for cell in kinds.values():
        assert settings(chosen, cell, ROOT).runtime.seed == cell.seed


def test_digest_has_what_decides_a_cell():
    chosen = plan.Plan.model_validate(VALUES)
    base = Cell("en", 42, "magnitude", 0.9, "fine_tuned")

    def digest(cell: Cell, **changes) -> str:
        made = settings(chosen, cell, ROOT)
        return fingerprint(chosen, made.model_copy(update=changes), cell)

    made = settings(chosen, base, ROOT)
    assert digest(base) == digest(Cell("en", 1, "magnitude", 0.9, "fine_tuned"))  # any seed
    assert digest(base) != digest(Cell("en", 42, "magnitude", 0.9, "ramped"))
    other_method = made.prune.model_copy(update={"l1": made.prune.l1.model_copy(update={"strength": 9.0})})
    assert digest(base) == digest(base, prune=other_method)
    assert digest(base) != digest(base, prune=made.prune.model_copy(update={"scope": "layer"}))
    tuned = made.finetune.model_copy(update={"epochs": 9.0})
    one_shot = Cell("en", 42, "magnitude", 0.9, "one_shot")
    assert digest(one_shot) == digest(one_shot, finetune=tuned)
    assert digest(base) != digest(base, finetune=tuned)


def test_rows_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    chosen, path = plan.Plan.model_validate(VALUES), tmp_path / "rows.csv"
    cells = chosen.cells()
    assert list(study.missing(chosen, path)) == cells
    done = Cell("en", 42, "magnitude", 0.9, "fine_tuned")
    csv_rows.append(path, row(params=fingerprint(chosen, settings(chosen, done, ROOT), done)))
    csv_rows.append(path, row(seed=1, params="of other params"))
    assert list(study.missing(chosen, path)) == [cell for cell in cells if cell != done]


def test_a_damaged_row_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    csv_rows.append(path, row(bleu=41.0))
    path.write_text(path.read_text().replace("41.0", "forty"))
    with pytest.raises(UserError, match="line 2"):
        results.read(path)


def test_differences_are_paired_by_seed():
    chosen = plan.Plan.model_validate(VALUES)
    rows = by_cell(
        row("dense", 42, 50.0),
        row("dense", 1, 40.0),
        row("magnitude", 42, 49.0),
        row("magnitude", 1, 38.0),
        row("magnitude", 2, 10.0),  # its control has not been made
        row("magnitude", 42, 50.0, regime="ramped"),
    )
    # Differences -1 and -2: mean -1.5, s = 0.7071, t(0.975, 1) = 12.706, half width 12.706 * 0.5
    assert report.difference(chosen, rows, "en", "fine_tuned")[-1] == "| `magnitude` | −1.5 ± 6.4 (2) |"
    # The control of `ramped` is that of `fine_tuned`.
    assert report.kept(chosen, rows, "en", "ramped")[-1] == "| `ramped` | `magnitude` | 100.0 % (1) |"


def test_tables_are_filled_in_place():
    chosen = plan.Plan.model_validate(VALUES)
    rows = by_cell(row("dense", 42, 50.0), row("magnitude", 42, 49.0))
    page = "before\n<!-- study: bleu en fine_tuned -->\nold\n<!-- end -->\nafter\n"
    filled = report.filled(page, chosen, rows)
    assert "| `magnitude` | 49.0 (1) |" in filled and "old" not in filled
    assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter\n")
    assert report.filled(filled, chosen, rows) == filled
    with pytest.raises(UserError, match="no such table"):
        report.filled(page.replace("bleu", "blue"), chosen, rows)
    with pytest.raises(UserError, match="tuned is no regime"):
        report.filled(page.replace("fine_tuned", "tuned"), chosen, rows)


def test_every_table_can_be_made():
    chosen = plan.Plan.model_validate(VALUES)
    rows = by_cell(row("dense", 42, 50.0), row("magnitude", 42, 49.0))
    for name, more in {"losses": ["0.9"], "validation": []}.items():
        arguments = ["0.9", "fine_tuned"] if name == "validation" else ["fine_tuned", *more]
        assert "`magnitude`" in report.TABLES[name](chosen, rows, "en", *arguments)[-1]
    for name in report.TABLES.keys() - {"losses", "validation"}:
        assert "`magnitude`" in report.TABLES[name](chosen, rows, "en", "fine_tuned")[-1]


def test_a_small_study_for_real(tmp_path):
    """Cells made by the stages, in two calls, then nothing more to do."""
    for name in ("params.yaml", "recipes", "data"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    raw = tmp_path / "data" / "raw" / "small.csv"
    acts = [f"Hotel-Inform ({one}, {two})" for one in "abcdef" for two in "ghijkl"]
    raw.write_text("act,utterance\n" + "".join(f'"{act}",It is #HOTEL-INFORM-{act[14].upper()}# .\n' for act in acts))
    small = SMALL_RUN | {
        "model": SMALL_RUN["model"] | {"max_target_tokens": 16},
        "train": {"epochs": 1, "batch_size": 8},
        "finetune": {"epochs": 1, "batch_size": 8, "gradient_accumulation": 1, "refresh_steps": 1},
        "prune": {"calibration": {"samples": 8, "batch_size": 8}},
    }
    block = {**VALUES["blocks"][0], "seed": [3, 4], "sparsity": [0.6]}
    YAML().dump({**VALUES, "params": small, "blocks": [block]}, tmp_path / "plan.yaml")
    command = [sys.executable, "-m", "benchmarks.study", "--plan", "plan.yaml", "--csv", "rows.csv", "--models", "m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def run(*options: str) -> str:
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("--limit", "3")
    cells = plan.load(tmp_path / "plan.yaml").cells()
    assert [one.cell for one in results.read(tmp_path / "rows.csv")] == cells[:3]
    run("-j", "2")  # side by side, the seeds
    rows = results.read(tmp_path / "rows.csv")
    assert {one.cell for one in rows} == set(cells) and len(rows) == len(cells) == 8
    for seed in (3, 4):
        found = [one for one in rows if one.seed == seed]
        assert [one.cell for one in found] == [cell for cell in cells if cell.seed == seed]
        assert found[0].steps == 0 and found[1].steps == found[3].steps > 0
        assert found[1].loss != found[0].loss != found[2].loss
    before = Path(tmp_path / "rows.csv").read_bytes()
    assert "seed 3" not in run()
    assert Path(tmp_path / "rows.csv").read_bytes() == before
