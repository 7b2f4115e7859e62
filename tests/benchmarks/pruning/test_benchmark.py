"""The command: which measurements there are, going on, and the page that shows them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from benchmarks.pruning import __main__ as benchmark
from benchmarks.pruning import report, results, subjects, ways
from benchmarks.pruning.results import Cell, Row
from stages.errors import UserError

SETUP = ("a machine", "versions", "code")
PAGE = Path("docs/benchmark.md")


def row(cell: Cell, cpu_seconds: float = 1.0, mebibytes: int = 100, losses: str = "1.0 2.0 3.0", **other: Any) -> Row:
    machine, versions, code = SETUP
    made = Row(
        **vars(cell),
        seconds=2 * cpu_seconds,
        cpu_seconds=cpu_seconds,
        extra_bytes=mebibytes * 2**20,
        model_bytes=2**29,
        zeros=500,
        eligible=1000,
        losses=losses,
        machine=machine,
        versions=versions,
        code=code,
    )
    return replace(made, **other)


def test_sides_come_one_after_the_other_and_take_turns() -> None:
    cells = [cell for cell in results.cells(2) if cell.method != results.DENSE]
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 19
    for one, two in zip(cells[::2], cells[1::2], strict=True):
        assert replace(one, library="") == replace(two, library="")
        assert (one.library == ways.OURS) == (one.repeat == 0) != (two.library == ways.OURS)
    assert {cell.level for cell in cells} == set(ways.LEVELS)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llmcompressor", reason="the extra `oracles` is not installed")
    made: list[Cell] = []

    def run(cell: Cell, folder: Path, setup: tuple[str, str, str]) -> Row:
        made.append(cell)
        return row(cell)

    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(benchmark.subjects, "prepare", lambda name, folder: folder / name)
    monkeypatch.setattr(results, "setup", lambda: SETUP)
    path = tmp_path / "rows.csv"
    for _ in range(2):
        benchmark.main(["--csv", str(path), "--limit", "3", "--repeats", "1"])
    assert made == list(results.cells(1))[:6]
    assert [one.cell for one in rows.read(path, Row)] == made
    monkeypatch.setattr(results, "setup", lambda: ("another machine", "versions", "code"))
    benchmark.main(["--csv", str(path), "--limit", "1", "--repeats", "1"])
    assert made[-1] == made[0]


def test_a_measurement_is_made_in_a_process_of_its_own(folder: Callable[[str], Path]) -> None:
    made = benchmark.run(Cell("bart", "magnitude", "0.5", ways.OURS, 0), folder("bart"), SETUP)
    assert made.zeros == round(0.5 * made.eligible) > 0 and made.losses == "" and made.setup == SETUP
    judged = benchmark.run(Cell("smollm2", "magnitude", "2:4", ways.TORCH_AO, 0), folder("llama"), SETUP)
    assert 2 * judged.zeros == judged.eligible and len(judged.nats) == 4


def test_memory_is_of_another_process_with_every_tensor_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the first repeat; seconds and losses are of a process as it is."""
    pytest.importorskip("llmcompressor", reason="the extra `oracles` is not installed")
    asked: list[str | None] = []

    def run(words: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(env.get("MALLOC_MMAP_THRESHOLD_"))
        mapped = asked[-1] is not None
        found = {"seconds": 9.0 if mapped else 2.0, "cpu_seconds": 8.0 if mapped else 1.0}
        found |= {"extra_bytes": 5 if mapped else 7, "model_bytes": 4, "zeros": 1, "eligible": 2}
        losses = [1.5] if "--judge" in words else []
        return subprocess.CompletedProcess(words, 0, json.dumps(found | {"losses": losses}), "")

    cells = [Cell("smollm2", "wanda", "0.5", ways.OURS, repeat) for repeat in range(2)]
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    monkeypatch.setattr(benchmark.subjects, "prepare", lambda name, folder: folder / name)
    monkeypatch.setattr(results, "cells", lambda repeats: iter(cells[:repeats]))
    monkeypatch.setattr(results, "setup", lambda: SETUP)
    path = tmp_path / "rows.csv"
    arguments = ["--csv", str(path), "--repeats", "2"]
    benchmark.main([*arguments, "--only", "seconds"])
    assert [row.extra_bytes for row in rows.read(path, Row)] == [None, None] and asked == [None, None]
    capsys.readouterr()
    benchmark.main([*arguments, "--only", "memory", "--method", "sparsegpt"])
    assert asked == [None, None] and capsys.readouterr().out.startswith("nothing to measure")
    for _ in range(2):
        benchmark.main(arguments)
    found = rows.read(path, Row)
    assert [row.cell for row in found] == cells and asked == [None, None, "131072"]
    assert [(row.seconds, row.cpu_seconds, row.extra_bytes, row.nats) for row in found] == [
        (2.0, 1.0, 5, [1.5]),
        (2.0, 1.0, None, [1.5]),
    ]


def test_what_went_wrong_in_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"smollm2, magnitude 0\.5, espalier, repeat 0: "):
        benchmark.run(Cell("smollm2", "magnitude", "0.5", ways.OURS, 0), tmp_path / "none", SETUP)


def test_the_code_that_prunes_is_part_of_a_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(results, "digest", lambda *parts: seen.extend(part.name for part in parts) or "d" * 32)
    machine, versions, code = results.setup()
    assert "cores" in machine and "torch 2" in versions and code == "d" * 12
    assert {"engine.py", "selection.py", "sparsegpt.py", "walk.py", "ways.py", "subjects.py"} <= set(seen)


def comparison() -> list[Row]:
    """Ours takes 2, 1 and 4 s and the other 4, 4 and 4; ours loses 0.1, 0.1 and 0.4 nats more."""
    mine = [Cell("smollm2", "wanda", "0.5", ways.OURS, repeat) for repeat in range(3)]
    other = [replace(cell, library=ways.LLMCOMPRESSOR) for cell in mine]
    made = [row(cell, seconds, 100 + cell.repeat) for cell, seconds in zip(mine, (2.0, 1.0, 4.0), strict=True)]
    made += [row(cell, 4.0, 300, zeros=501) for cell in other]
    return [replace(made[0], losses="1.1 2.1 3.4"), *made[1:]]


def test_memory_that_was_not_measured_is_none_in_rows_and_not_in_a_median(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    made = [replace(one, extra_bytes=None) if one.repeat else one for one in comparison()]
    for one in made:
        rows.append(path, one)
    assert rows.read(path, Row) == made
    found = results.latest(made)
    assert report.cost(found, "smollm2")[2:] == ["| `wanda` | 50 % | `llmcompressor` | 2.0 | 4.0 | 0.50 | 100 | 300 |"]
    later = {cell: one for cell, one in found.items() if cell.repeat}
    assert report.cost(later, "smollm2")[2:] == ["| `wanda` | 50 % | `llmcompressor` | 2.5 | 4.0 | 0.62 | – | – |"]


def test_tables_by_hand() -> None:
    """Medians 2 and 4, ratios 0.5, 0.25 and 1; exp(6.2 / 3) and exp(2); 0.2 / 3 ± 4.3027 * 0.1155 / sqrt(3)."""
    found = results.latest(comparison())
    assert report.cost(found, "smollm2")[2:] == ["| `wanda` | 50 % | `llmcompressor` | 2.0 | 4.0 | 0.50 | 101 | 300 |"]
    assert report.quality(found, "smollm2")[2:] == [
        "| `wanda` | 50 % | `llmcompressor` | 7.9 | 7.4 | +0.0667 ± 0.2868 | 3 | 50.0000 % | 50.1000 % |"
    ]
    *_, seed, often = report.setup(found, "smollm2")
    assert seed.startswith(f"- seed {subjects.SEED}: ") and often.endswith("3 to 3 times")
    assert report.cost(found, "bart")[2:] == []


def test_of_one_repeat_the_interval_is_over_texts() -> None:
    """exp(2.2) and exp(2); 0.2 ± 4.3027 * 0.1732 / sqrt(3)."""
    found = {cell: row for cell, row in results.latest(comparison()).items() if cell.repeat == 0}
    assert report.quality(found, "smollm2")[2:] == [
        "| `wanda` | 50 % | `llmcompressor` | 9.0 | 7.4 | +0.2000 ± 0.4303 | 1 | 50.0000 % | 50.1000 % |"
    ]


def test_what_looks_at_texts_is_judged_in_every_repeat_by_other_ones(folder: Callable[[str], Path]) -> None:
    cells = [
        Cell("smollm2", method, "0.5", ways.OURS, repeat) for method in ("wanda", "magnitude") for repeat in (0, 1)
    ]
    first, second, plain, again = (benchmark.run(cell, folder("llama"), SETUP) for cell in cells)
    assert len(first.nats) == len(second.nats) == len(plain.nats) > 0 and first.losses != second.losses
    assert again.losses == ""


def test_a_side_that_is_alone_is_in_no_table() -> None:
    assert report.cost(results.latest(comparison()[:3]), "smollm2")[2:] == []


def test_rows_of_another_setup_than_the_last_are_left_out() -> None:
    """Of that comparison alone."""
    older = [replace(one, code="older") for one in comparison()]
    kept = row(Cell("smollm2", "magnitude", "0.5", ways.OURS, 0), code="older")
    assert set(results.latest([*older, kept, comparison()[0]])) == {kept.cell, comparison()[0].cell}


@pytest.mark.parametrize("mark", ["cost", "cost gpt2", "speed smollm2"])
def test_a_mark_of_no_table_is_named(mark: str) -> None:
    with pytest.raises(UserError, match=f"<!-- pruning: {mark} -->: no such table"):
        report.filled(f"<!-- pruning: {mark} -->\n<!-- end -->", {})


def test_the_page_has_the_tables_of_the_rows() -> None:
    found = results.latest(rows.read(benchmark.CSV, Row))
    assert found
    page = PAGE.read_text(encoding="utf-8")
    assert report.filled(page, found) == page
    assert "| `sparsegpt` | 50 %" in page
