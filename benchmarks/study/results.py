"""A row for every cell that has been made, in a CSV file that git holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows
from benchmarks.study.plan import Cell


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


def read(path: Path) -> list[Row]:
    """All rows, none if there is no file.

    Raises:
        UserError: it is not such a file.
    """
    return rows.read(path, Row)


def latest(found: Iterable[Row]) -> dict[Cell, Row]:
    """The row of each cell, leaving out those of other params than the last of its kind (any seed) has."""
    found = list(found)
    current = {dataclasses.replace(row.cell, seed=0): row.params for row in found}
    return {row.cell: row for row in found if row.params == current[dataclasses.replace(row.cell, seed=0)]}
