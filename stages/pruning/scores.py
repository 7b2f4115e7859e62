"""Scores of a model's weights, one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from stages.pruning.criterion import Context


class Scores(Mapping[str, Tensor]):
    """Scores by weight name, each computed when it is looked up, so that those of a model never stand side by side."""

    def __init__(self, names: Mapping[str, object], score: Callable[[str], Tensor]) -> None:
        """Set up for the given names; `score` is called for one at every look-up."""
        self._names = names
        self._score = score

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._score(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def magnitudes(context: Context) -> Scores:
    """|w| of every eligible weight, as it is when it is looked up."""
    weights = context.weights
    return Scores(weights, lambda name: weights[name].detach().abs())
