"""Which weights have to go together: each alone, N of every M, or blocks.

Everything here is about matrices as [out, in], whatever way round a model keeps them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.errors import UserError
from stages.pruning.selection import by_rows


class Pattern(Protocol):
    """What selection needs to know of a pattern."""

    @property
    def size(self) -> int:
        """Weights of a unit, which are pruned together."""
        ...

    @property
    def rows(self) -> int:
        """Outputs that a unit lies in."""
        ...

    @property
    def columns(self) -> int:
        """Inputs that have to be looked at together: a window of a matrix's columns is a multiple of it."""
        ...

    def check(self, name: str, shape: torch.Size, sparsity: float) -> None:
        """Check that a matrix can have the pattern, and its sparsity.

        Raises:
            UserError: it cannot.
        """
        ...

    def scores(self, scores: Tensor) -> Tensor:
        """Scores of the units [rows, units a row] from those of the weights [out, in]."""
        ...

    def candidates(self, units: int) -> int:
        """How many of a matrix's units can be pruned; the others' scores are infinite."""
        ...

    def expand(self, units: Tensor) -> Tensor:
        """Whether each weight [out, in] is kept, from the same of the units."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Each weight by itself."""

    size: int = 1
    rows: int = 1
    columns: int = 1

    def check(self, name: str, shape: torch.Size, sparsity: float) -> None:
        """Any matrix."""

    def scores(self, scores: Tensor) -> Tensor:
        """The weights' own."""
        return scores

    def candidates(self, units: int) -> int:
        """All."""
        return units

    def expand(self, units: Tensor) -> Tensor:
        """The units' own."""
        return units


@dataclass(frozen=True)
class Grouped:
    """At most `kept` of every `group` weights along the input dimension, such as 2:4 (Mishra et al. 2021).

    The others of a group are the candidates; the lowest of all candidates go first while sparsity is still rising,
    so every sparsity up to the pattern's is exact, and at the pattern's own all candidates are pruned.
    """

    kept: int
    group: int
    size: int = 1
    rows: int = 1

    @property
    def columns(self) -> int:
        """See `Pattern`."""
        return self.group

    @property
    def sparsity(self) -> float:
        """Share of weights that the full pattern prunes."""
        return 1 - self.kept / self.group

    def check(self, name: str, shape: torch.Size, sparsity: float) -> None:
        """See `Pattern`."""
        if shape[1] % self.group:
            raise UserError(
                f"prune.pattern {self.kept}:{self.group}: {name} has {shape[1]} inputs, no multiple of {self.group}; "
                f"leave it out with prune.layers: {{'{name}': 0}}"
            )
        if sparsity > self.sparsity + 1e-9:
            raise UserError(
                f"prune.pattern {self.kept}:{self.group} is a sparsity of {self.sparsity:g}, {name} is to get "
                f"{sparsity:g}: choose another pattern, or another sparsity"
            )

    def scores(self, scores: Tensor) -> Tensor:
        """The weights' own for the candidates, infinite for those that the pattern keeps."""
        groups = scores.reshape(-1, self.group)
        found = torch.empty_like(groups)
        for some, wanted in by_rows(groups, found):
            columns = some.T.contiguous()
            columns.masked_fill_(_ranks(columns) >= self.group - self.kept, math.inf)
            wanted.copy_(columns.T)
        return found.reshape(scores.shape)

    def candidates(self, units: int) -> int:
        """Of each group those that the pattern does not keep."""
        return units // self.group * (self.group - self.kept)

    def expand(self, units: Tensor) -> Tensor:
        """The units' own."""
        return units


@dataclass(frozen=True)
class Blocks:
    """Rectangles of `rows` outputs by `columns` inputs, scored by the mean of their weights' scores."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """See `Pattern`."""
        return self.rows * self.columns

    def check(self, name: str, shape: torch.Size, sparsity: float) -> None:
        """See `Pattern`."""
        if shape[0] % self.rows or shape[1] % self.columns:
            raise UserError(
                f"prune.pattern {self.rows}x{self.columns}: {name} of {shape[0]} outputs and {shape[1]} inputs is not "
                f"made of such blocks; leave it out with prune.layers: {{'{name}': 0}}"
            )

    def scores(self, scores: Tensor) -> Tensor:
        """Means over the blocks."""
        rows, columns = scores.shape
        return scores.reshape(rows // self.rows, self.rows, columns // self.columns, self.columns).mean(dim=(1, 3))

    def candidates(self, units: int) -> int:
        """All."""
        return units

    def expand(self, units: Tensor) -> Tensor:
        """Every weight as its block."""
        return units.repeat_interleave(self.rows, dim=0).repeat_interleave(self.columns, dim=1)


COMPARED = 16
"""Groups up to so wide are ranked faster by comparing every two members than by sorting."""


def _ranks(columns: Tensor) -> Tensor:
    """Place of each member of a group [group, groups] from the lowest on; of equal ones the first is before."""
    group = len(columns)
    if group > COMPARED:
        return columns.argsort(dim=0, stable=True).argsort(dim=0)
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=columns.device)
    for i in range(group):
        for j in range(i + 1, group):
            later_is_lower = columns[j] < columns[i]
            ranks[i] += later_is_lower
            ranks[j] += ~later_is_lower
    return ranks


def parse(text: str) -> Pattern:
    """The pattern that `unstructured`, `2:4` or `4x1` names.

    Raises:
        ValueError: it names none.
    """
    if text == "unstructured":
        return Unstructured()
    if match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text):
        kept, group = int(match[1]), int(match[2])
        if kept < group:
            return Grouped(kept, group)
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text):
        return Blocks(int(match[1]), int(match[2]))
    raise ValueError(f"{text} is no pattern: unstructured, N:M with N below M, or a block ROWSxCOLUMNS such as 4x1")
