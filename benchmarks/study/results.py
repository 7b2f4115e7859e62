"""A row for every cell that has been made, in a CSV file that git holds."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.plan import Cell
from stages.errors import UserError
from stages.files import replacing


@dataclass(frozen=True)
class Row:
    """A cell and what was measured of it."""

    language: str
    seed: int
    method: str
    sparsity: float
    regime: str
    bleu: float
    """Of the test split, greedy, 0 to 100."""
    validation_bleu: float
    """What a choice between regimes may look at."""
    slot_error_rate: float
    """Of the test split."""
    loss: float
    """Of the test split, nats a token; its exponential is the perplexity."""
    validation_loss: float
    train_loss: float
    """Of an even sample of the training split."""
    steps: int
    """Of fine-tuning."""
    prune_seconds: float
    """CPU time of the prune stage."""
    finetune_seconds: float
    """CPU time of the finetune stage."""
    params: str
    """Digest of all params that decide the cell, but the seed."""

    @property
    def cell(self) -> Cell:
        """Which cell this is of."""
        return Cell(self.language, self.seed, self.method, self.sparsity, self.regime)


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
_KINDS = {"str": str, "int": int, "float": float}


def read(path: Path) -> list[Row]:
    """All rows, none if there is no file.

    Raises:
        UserError: it is not such a file.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise UserError(f"{path} has other columns than {', '.join(FIELDS)}: move it away")
        return [_parsed(path, number, row) for number, row in enumerate(reader, start=2)]


def append(path: Path, row: Row) -> None:
    """Add a row. The file is written anew and then renamed, so that a reader, or an end by force, finds it whole."""
    rows = [*read(path), row]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def latest(rows: Iterable[Row]) -> dict[Cell, Row]:
    """The row of each cell, leaving out those of other params than the last of its kind (any seed) has."""
    rows = list(rows)
    current = {dataclasses.replace(row.cell, seed=0): row.params for row in rows}
    return {row.cell: row for row in rows if row.params == current[dataclasses.replace(row.cell, seed=0)]}


def _parsed(path: Path, number: int, values: dict[str, str]) -> Row:
    try:
        made = {field.name: _KINDS[str(field.type)](values[field.name]) for field in dataclasses.fields(Row)}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, line {number}: {error}: remove that line") from None
    return Row(**made)
