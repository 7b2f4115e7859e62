"""Choosing exactly k weights: those with the lowest scores, of equal ones the first in model order.

The result is the same for any device and thread count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stages.errors import UserError

CHUNK = 2**17
"""Scores looked at at a time: what is computed beside them stays in the processor's cache."""

Pieces = Callable[[], Iterable[Tensor]]
"""Makes the scores of a matrix, in order and flat, `CHUNK` at a time."""


@dataclass(frozen=True)
class Cut:
    """Which scores are the k lowest of many: those below a value, and some of those equal to it."""

    value: float
    ties: int
    """How many of those equal to the value, in order, are among them."""

    def mark(self, kept: Tensor, scores: Pieces, met: int) -> int:
        """Write to `kept` which scores are not among the lowest, when `met` ties came before; returns the ties by now.

        Args:
            kept: bool, contiguous, as many as there are scores; on any device.
            scores: of a matrix.
            met: ties of the matrices before this one.
        """
        for piece, marked in zip(scores(), kept.view(-1).split(CHUNK), strict=True):
            keep = piece > self.value
            ties = (piece == self.value).nonzero().flatten()
            keep[ties[max(self.ties - met, 0) :]] = True
            met += len(ties)
            marked.copy_(keep)
        return met


def pieces(scores: Tensor) -> Iterable[Tensor]:
    """Scores, flat, `CHUNK` at a time."""
    return scores.reshape(-1).split(CHUNK)


def by_rows(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, so many at a time as have `CHUNK` elements in the first one, and at least one.

    Args:
        matrices: the first [rows, columns], others of as many rows.
    """
    together = max(CHUNK // max(matrices[0].shape[1], 1), 1)
    return zip(*(matrix.split(together) for matrix in matrices), strict=True)


def lowest(scores: Mapping[str, Pieces], count: int) -> Cut:
    """Where the `count` lowest of all scores end.

    Two passes, each over one piece at a time: a histogram of the upper half of every score's bits, then one of the
    lower half for the scores in the bin where the count is reached (radix selection). Nothing is sorted or kept.

    Args:
        scores: fp32, by name of the matrix.
        count: from 0 to the number of scores.

    Raises:
        UserError: a score is NaN.
    """
    if count == 0:
        for name, made in scores.items():
            for piece in made():
                check_numbers(piece, name)
        return Cut(-math.inf, 0)
    high = torch.zeros(2**16, dtype=torch.int64)
    for name in scores:
        for keys in _keys(scores[name](), name):
            high += torch.bincount((keys >> 16) + 2**15, minlength=2**16).cpu()
    bin_, below = _reached(high, count)
    low = torch.zeros(2**16, dtype=torch.int64)
    for name in scores:
        for keys in _keys(scores[name](), name):
            low += torch.bincount(keys[keys >> 16 == bin_ - 2**15] & 0xFFFF, minlength=2**16).cpu()
    least, before = _reached(low, count - below)
    return Cut(_value((bin_ - 2**15) * 2**16 + least), count - below - before)


def keep_lowest_out(scores: Tensor, count: int, *, rows: bool, name: str) -> Tensor:
    """Mask [rows, columns] that keeps all but the `count` lowest scores of a matrix, in each row alike or over all.

    Raises:
        UserError: a score is NaN; says of which matrix.
    """
    candidates = scores.numel() - int((scores == math.inf).count_nonzero())
    if count == candidates and not (rows and _uneven(scores == math.inf)):
        check_numbers(scores, name)
        return scores == math.inf  # nothing else is left to choose, as where a pattern N:M is met
    if not rows:
        kept = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
        made = partial(pieces, scores)
        lowest({name: made}, count).mark(kept, made, 0)
        return kept
    return keep_lowest_in_rows_out(scores, over_rows(count, len(scores)).to(scores.device), name=name)


def _uneven(infinite: Tensor) -> bool:
    """Whether rows have more infinite scores than others."""
    # Some rows at a time: to be summed, each flag is made a whole number of eight bytes.
    counts = torch.cat([some.sum(dim=1) for (some,) in by_rows(infinite)])
    return bool((counts != counts[0]).any())


def keep_lowest_in_rows_out(scores: Tensor, counts: Tensor, *, name: str) -> Tensor:
    """Mask [rows, columns] that keeps all but the lowest scores of each row, `counts` [rows] of them.

    Raises:
        UserError: a score is NaN; says of which matrix.
    """
    check_numbers(scores, name)
    kept = torch.ones_like(scores, dtype=torch.bool)
    for piece, wanted, keep in by_rows(scores, counts, kept):
        for count in wanted.unique().tolist():
            if count:
                rows = wanted == count
                keep[rows] = _kept_of_rows(piece[rows], count)
    return kept


def _kept_of_rows(scores: Tensor, count: int) -> Tensor:
    """Mask of what is not among the `count` lowest of each row, at least one. Of each row nothing is sorted."""
    last = scores.topk(count, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    keep, ties = scores > last, scores == last
    below = scores.shape[1] - keep.sum(dim=1) - ties.sum(dim=1)
    more = below + ties.sum(dim=1) > count
    if bool(more.any()):  # ties that stay: those behind the first of them
        keep[more] |= ties[more] & (ties[more].cumsum(dim=1) > (count - below[more]).unsqueeze(1))
    return keep


def over_rows(count: int, rows: int) -> Tensor:
    """A count divided between rows alike; where it is no multiple of them, the first ones have one more."""
    whole, more = divmod(count, rows)
    return whole + (torch.arange(rows) < more).long()


def check_numbers(scores: Tensor, name: str) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        UserError: one is NaN.
    """
    if scores.numel() and bool(scores.max().isnan()):  # one NaN makes the maximum NaN
        raise UserError(f"importance scores of {name} are not numbers: the model has diverged")


def _keys(scores: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """Whole numbers in the order of the scores, in pieces: their bits, negative ones turned round."""
    for piece in scores:
        check_numbers(piece, name)
        bits = (piece.detach().float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
        yield bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _value(key: int) -> float:
    """The score that a whole number of `_keys` stands for."""
    bits = torch.tensor(key if key >= 0 else key ^ 0x7FFFFFFF, dtype=torch.int64).to(torch.int32)
    return float(bits.view(torch.float32))


def _reached(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin in which the count is reached, and how many there are in the bins before."""
    sums = histogram.cumsum(0)
    bin_ = int(torch.searchsorted(sums, count))
    return bin_, int(sums[bin_] - histogram[bin_])
