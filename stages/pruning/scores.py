"""Scores of a model's weights, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from stages.pruning.criterion import Context
from stages.pruning.selection import pieces


class Scores(Mapping[str, Tensor]):
    """Scores by weight name, each computed when it is looked up, so that those of a model never stand side by side."""

    def __init__(
        self,
        names: Mapping[str, object],
        tensor: Callable[[str], Tensor],
        each: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """Set up for the given names.

        Args:
            names: of weights.
            tensor: called for one at every look-up.
            each: makes scores of what `tensor` returns, of every element by itself.
        """
        self._names = names
        self._tensor = tensor
        self._each = each

    def __getitem__(self, name: str) -> Tensor:
        return self._each(self._of(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """What a look-up gives, flat and in pieces: what `each` makes of a matrix is never there at once."""
        yield from map(self._each, pieces(self._of(name)))

    def moved(self, move: Callable[[str, Tensor], Tensor]) -> Scores:
        """The same with elements in other places, where `move` puts them."""
        return Scores(self._names, lambda name: move(name, self._of(name)), self._each)

    def _of(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensor(name)


def magnitudes(context: Context) -> Scores:
    """|w| of every eligible weight, as it is when it is looked up."""
    weights = context.weights
    return Scores(weights, lambda name: weights[name].detach(), torch.abs)
