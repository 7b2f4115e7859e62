"""How many units each window of a matrix's columns loses.

A criterion that prunes columns from left to right cannot rank the whole matrix at once. Each window loses its share of
what is to go, in proportion to what may still go there; the windows of a matrix sum to its count exactly, and none has
to bring back what is pruned already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.pruning.patterns import Pattern
from stages.pruning.selection import over_rows


@dataclass(frozen=True)
class Quota:
    """Of every row, or of all rows together, as sums over the units to the left of a column: [rows or 1, units + 1]."""

    gone: Tensor
    """Units pruned already."""
    free: Tensor
    """Units that may still be pruned."""
    more: Tensor
    """Of the free ones, how many are to go, [rows or 1]."""

    def of(self, start: int, stop: int) -> Tensor:
        """Units that those in columns [start, stop) lose in all, what is pruned already included, [rows or 1]."""
        whole = self.free[:, -1].long().clamp(min=1)
        before, after = (self.more * self.free[:, column].long() // whole for column in (start, stop))
        return after - before + self.gone[:, stop] - self.gone[:, start]


def divide(count: int, shape: torch.Size, pattern: Pattern, held: Tensor | None, *, rows: bool) -> Quota:
    """The quota of a matrix.

    Args:
        count: units it loses in all.
        shape: of the matrix, [out, in].
        pattern: which weights make a unit, and how many of a group may go.
        held: [out, in], False where a weight is pruned already; None if none is.
        rows: whether each row of units loses as many.
    """
    weights = torch.zeros(shape) if held is None else torch.zeros(shape).masked_fill(~held.cpu(), -math.inf)
    units = pattern.scores(weights)  # infinite where the pattern forbids to prune
    counts = over_rows(count, len(units)) if rows else torch.tensor([count])
    gone, free = _summed(units == -math.inf, rows), _summed(units == 0, rows)
    return Quota(gone, free, counts - gone[:, -1])


def _summed(units: Tensor, rows: bool) -> Tensor:
    """Sums of the units to the left of each column, and of all; at half the size where there is one for each row."""
    sums = units.cumsum(dim=1, dtype=torch.int32) if rows else units.sum(dim=0, keepdim=True).cumsum(dim=1)
    return torch.nn.functional.pad(sums, (1, 0))
