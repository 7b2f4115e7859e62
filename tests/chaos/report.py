"""The table: on the terminal as rows come, in a CSV file, in a page of docs."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import tables
from chaos.faults import Result, Row

PAGE = Path("docs/faults.md")


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table, and below it what was lost."""
    table = Table("fault", "times", "survived", "lost", "s", title="Faults")
    for result in results:
        row = result.row
        style = "red" if row.lost else None
        table.add_row(
            f"{row.family}: {row.fault}",
            *map(str, (row.times, row.survived, row.lost)),
            f"{row.seconds:.0f}",
            style=style,
        )
    console.print(table)
    for result in results:
        for loss in result.losses:
            console.print(f"[red]lost[/] {result.row.family}: {result.row.fault}", highlight=False)
            console.print(loss, markup=False, highlight=False)


def write(path: Path, results: Sequence[Result]) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result.row) | {"seconds": round(result.row.seconds)} for result in results)


def rewrite(page: Path, results: Sequence[Result]) -> None:
    """Put the table into a page, between its marks."""

    def table(name: str, arguments: list[str]) -> list[str]:
        rows = [result.row for result in results]
        cells = [[r.family, r.fault, r.how, *map(str, (r.times, r.survived, r.lost))] for r in rows]
        total = [str(sum(getattr(row, name) for row in rows)) for name in ("times", "survived", "lost")]
        names = ["family", "fault", "how", "times", "survived", "lost"]
        return [*tables.header(names, left=3), *(tables.line(row) for row in [*cells, ["", "all", "", *total]])]

    tables.rewrite(page, "chaos", table)
