"""Readers of CSV, TSV and line-aligned pairs of text files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from stages.errors import UserError
from stages.text.rows import Columns, Row, read_lines

# A quote that is never closed would otherwise take the rest of the file into memory.
_MAX_CELL_CHARACTERS = 1 << 26


def read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a comma-separated file with a header line. Quoted cells may hold commas and line breaks.

    Every cell is text: `NA`, `null` and `007` are read as written. Blank lines are no rows.

    Raises:
        UserError: no header, a missing column, a stray quote, or a cell of over 64 Mi characters; names the line.
    """
    return _read(path, columns, ",")


def read_tsv(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a tab-separated file with a header line, quoted as CSV is."""
    return _read(path, columns, "\t")


def _read(path: Path, columns: Columns, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(filter(None, reader), None)
        if header is None:
            raise UserError(f"{path} is empty: expected a header line and rows")
        source, target, *split = columns.positions(header, str(path))
        lines.of_row.clear()
        for cells in reader:
            if len(cells) == len(header):
                yield Row(cells[source], cells[target], cells[split[0]] if split else None)
            elif cells:
                yield Row(_without_line_end("".join(lines.of_row)), None, malformed=True)
            lines.of_row.clear()
    except csv.Error as error:
        begins = reader.line_num - len(lines.of_row) + 1
        place = f"{path}, line {reader.line_num}"
        if begins < reader.line_num:
            place += f", in the row that begins in line {begins}"
        raise UserError(f'{place}: {error}; a cell with quotes or line breaks is written "like ""this"""') from None


class _Lines:
    """The lines of a file; those passed on since `of_row` was last cleared are in it, for a row may take several."""

    def __init__(self, path: Path) -> None:
        self.of_row: list[str] = []
        self._lines = read_lines(path)

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.of_row.append(line)
            yield line


def read_text_pair(source_path: Path, target_path: Path) -> Iterator[Row]:
    """Rows of two text files where line n of one belongs to line n of the other. Empty lines count.

    Raises:
        UserError: the files differ in length.
    """
    pairs = zip_longest(read_lines(source_path), read_lines(target_path))
    for number, (source, target) in enumerate(pairs):
        if source is None or target is None:
            shorter, longer = (source_path, target_path) if source is None else (target_path, source_path)
            raise UserError(f"{shorter} ends after line {number} and {longer} does not: both need a line for each pair")
        yield Row(_without_line_end(source), _without_line_end(target))


def _without_line_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")
