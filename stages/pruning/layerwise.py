"""Pruning a model block by block, each by the inputs that the pruned blocks before it give."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.bitmasks import Masks
from stages.pruning import quota
from stages.pruning.criterion import Context
from stages.pruning.masks import keep_whole
from stages.pruning.patterns import Pattern
from stages.pruning.selection import keep_lowest_in_rows_out, keep_lowest_out
from stages.pruning.statistics import Norms, Statistic
from stages.pruning.walk import walk


@dataclass
class Layer:
    """One matrix, as a layer-by-layer criterion is given it."""

    name: str
    weight: Tensor
    """[out, in]; a criterion that updates weights changes it in place."""
    statistic: Any
    """Of the criterion's kind, over the inputs."""
    count: int
    """Units of the pattern to prune."""
    pattern: Pattern
    rows: bool
    """Whether each row loses as many."""
    held: Tensor | None
    """[out, in]: False where a weight is pruned already, and stays so; None if none is."""
    settings: Any
    """The criterion's own section of params `prune`."""

    def keep(self, scores: Tensor, start: int = 0) -> Tensor:
        """Mask of the weights to keep by the lowest scores.

        Args:
            scores: [out, columns] of a window of columns, or of the whole matrix. Windows lose their share of the
                count, so that they sum to it.
            start: the window's first column; it and the window's end have to be multiples of the pattern's columns.
        """
        inputs, width = self.weight.shape[1], scores.shape[1]
        if self.held is not None:
            scores = scores.masked_fill(~self.held[:, start : start + width], -math.inf)
        units = self.pattern.scores(scores).contiguous()
        if width == inputs:
            kept = keep_lowest_out(units, self.count, rows=self.rows, name=self.name)
        else:
            first = start * units.shape[1] // width
            counts = self._quota.of(first, first + units.shape[1])
            if self.rows:
                kept = keep_lowest_in_rows_out(units, counts.to(units.device), name=self.name)
            else:
                kept = keep_lowest_out(units, int(counts), rows=False, name=self.name)
        return self.pattern.expand(kept)

    @cached_property
    def _quota(self) -> quota.Quota:
        return quota.divide(self.count, self.weight.shape, self.pattern, self.held, rows=self.rows)


@dataclass(frozen=True)
class Layerwise:
    """A criterion that prunes matrix after matrix."""

    statistic: Callable[[int, torch.device], Statistic]
    """What it needs to know of a matrix's inputs."""
    prune: Callable[[Layer], Tensor]
    """The mask [out, in] of a layer; may change the weights that it keeps."""
    updates: bool = False
    """Whether it does."""


@torch.no_grad()
def prune_in_order(
    context: Context, criterion: Layerwise, counts: Mapping[str, int], pattern: Pattern, held: Masks | None
) -> Masks:
    """Prune block after block, in place, and return the masks.

    Args:
        context: the model and its calibration batches.
        criterion: what prunes a matrix.
        counts: units of the pattern that each matrix is to lose.
        pattern: which weights go together.
        held: weights already pruned.

    Raises:
        UserError: there are no calibration texts, or none reaches a matrix.
    """
    # Masks are read off the weights in the end, when hidden states are gone: all that is known meanwhile is which zeros
    # are kept, mostly none.
    zeros: dict[str, bytes] = {}

    def visit(block: str, statistics: dict[str, Statistic]) -> None:
        for name in list(statistics):
            statistic = statistics.pop(name)  # nothing of it is left once its last matrix is pruned
            matrix = context.matrices[name]
            weight = matrix.oriented(matrix.weight.detach())
            already = None if held is None else matrix.oriented(held[name]).to(weight.device)
            rows = context.settings.scope == "row"
            layer = Layer(name, weight, statistic, counts[name], pattern, rows, already, context.settings)
            kept = criterion.prune(layer)
            weight.masked_fill_(~kept, 0.0)
            if int(weight.count_nonzero()) != int(kept.count_nonzero()):
                zeros[name] = _packed(matrix.oriented(kept & (weight == 0)))

    losing = [name for name, count in counts.items() if count]
    if losing:
        walk(context, criterion.statistic, visit, losing)
    masks = Masks()
    for name, matrix in context.matrices.items():
        if not counts.get(name):
            masks.put(name, keep_whole(matrix.weight))
            continue
        kept = matrix.weight != 0
        if name in zeros:
            kept |= _unpacked(zeros[name], kept.shape).to(kept.device)
        masks.put(name, kept)
    return masks


def _packed(mask: Tensor) -> bytes:
    """A mask, where little of it is True: hardly larger than what it says."""
    return zlib.compress(np.packbits(mask.cpu().numpy().reshape(-1)).tobytes(), level=1)


def _unpacked(packed: bytes, shape: torch.Size) -> Tensor:
    """What `_packed` was given."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), dtype=np.uint8), count=shape.numel())
    return torch.from_numpy(bits.view(bool)).reshape(shape)


@torch.no_grad()
def outlier_ratios(context: Context, threshold: float, names: Iterable[str]) -> dict[str, float]:
    """Share of |w|*|x| above `threshold` times their mean, of the block that each matrix is in.

    Yin et al. 2024, OWL, equation 1, of the dense model.

    Args:
        context: the model and its calibration batches.
        threshold: the paper's M.
        names: of the matrices that the sparsity is divided between; others have no say.
    """
    ratios: dict[str, float] = {}

    def visit(block: str, statistics: dict[str, Statistic]) -> None:
        scores = []
        for name, statistic in statistics.items():
            matrix = context.matrices[name]
            assert isinstance(statistic, Norms)
            scores.append((matrix.oriented(matrix.weight.detach()).abs() * statistic.norms).flatten())
        mean = sum(float(s.double().sum()) for s in scores) / sum(s.numel() for s in scores)
        above = sum(int((s > threshold * mean).sum()) for s in scores)
        ratio = above / sum(s.numel() for s in scores)
        ratios.update(dict.fromkeys(statistics, ratio))

    walk(context, Norms, visit, names)
    return ratios
