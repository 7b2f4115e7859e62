"""Rows of measurements, one a dataclass of text and numbers, in a CSV file that git holds."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stages.errors import UserError
from stages.files import replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Row = TypeVar("Row", bound=DataclassInstance)

_KINDS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "int | None": lambda text: int(text) if text else None,
}


def fields(kind: type[Any]) -> tuple[str, ...]:
    """Columns of rows of a class."""
    return tuple(field.name for field in dataclasses.fields(kind))


def read(path: Path, kind: type[Row]) -> list[Row]:
    """All rows, none if there is no file.

    Raises:
        UserError: it is not such a file.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != fields(kind):
            raise UserError(f"{path} has other columns than {', '.join(fields(kind))}: move it away")
        return [_parsed(path, kind, number, row) for number, row in enumerate(reader, start=2)]


def append(path: Path, row: DataclassInstance) -> None:
    """Add a row."""
    _write(path, [*read(path, type(row)), row])


def replace(path: Path, row: Row, other: Row) -> None:
    """Put another row where this one is."""
    _write(path, [other if one == row else one for one in read(path, type(row))])


def _write(path: Path, rows: Sequence[DataclassInstance]) -> None:
    """The file is written anew and then renamed, so that a reader, or an end by force, finds it whole."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields(type(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def _parsed(path: Path, kind: type[Row], number: int, values: dict[str, str]) -> Row:
    try:
        made = {field.name: _KINDS[str(field.type)](values[field.name]) for field in dataclasses.fields(kind)}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, line {number}: {error}: remove that line") from None
    return kind(**made)
