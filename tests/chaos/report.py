"""The table: on the terminal as rows come, in a CSV file, in a page of docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import tables
from chaos.faults import Result, Row

PAGE = Path("docs/faults.md")


def show(results: Sequence[Result], console: Console) -> None:
    """Print the table."""
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


def rewrite(page: Path, rows: Sequence[Row]) -> None:
    """Put the table into a page, between its marks; of two rows of a fault the later."""
    latest = {(row.family, row.fault): row for row in rows}

    def table(name: str, arguments: list[str]) -> list[str]:
        cells = [[r.family, r.fault, r.how, *map(str, (r.times, r.survived, r.lost))] for r in latest.values()]
        total = [str(sum(getattr(row, name) for row in latest.values())) for name in ("times", "survived", "lost")]
        names = ["family", "fault", "how", "times", "survived", "lost"]
        return [*tables.header(names, left=3), *(tables.line(row) for row in [*cells, ["", "all", "", *total]])]

    tables.rewrite(page, "chaos", table)
