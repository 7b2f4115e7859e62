"""What a pruning criterion is, and how one is found.

A criterion is one module under `stages/pruning/criteria/`, named as in params.yaml, that defines
`CRITERION`. To add one: write that file, add its name to `Method` and its knobs to `Prune` in
stages/params/prune.py and params.yaml, and give it a test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stages.models.anatomy import Matrix

if TYPE_CHECKING:
    from stages.pruning.layerwise import Layerwise

NO_CALIBRATION = "no calibration examples: the training split is empty, or prune.calibration.samples is 0"
Batches = Callable[[], Iterable[dict[str, Tensor]]]
"""Gives the calibration batches, on the model's device, the same ones at every call."""


@dataclass(frozen=True)
class Context:
    """What a criterion may look at."""

    model: nn.Module
    """In evaluation mode; a criterion that scores does not change its weights."""
    matrices: Mapping[str, Matrix]
    """Eligible weight matrices by name."""
    batches: Batches
    seed: int
    settings: Any
    """The criterion's own section of params `prune`; its `scope`, if it has one, goes before the general one."""
    learnt: Mapping[str, Tensor] | None = None
    """Scores learnt in training so far, of a criterion that learns them."""

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The eligible weights by name."""
        return {name: matrix.weight for name, matrix in self.matrices.items()}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have the model in evaluation mode for the block, and in the mode it was in after it."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


@dataclass(frozen=True)
class Criterion:
    """How weights are ranked, and the training that prepares them for it, if any. One of the first two is given, or
    the last.
    """

    importance: Callable[[Context], Mapping[str, Tensor]] | None = None
    """Score of every eligible weight, fp32, of the weight's shape; the lowest are pruned."""
    layerwise: Layerwise | None = None
    """Of a criterion that looks at a matrix's inputs, matrix after matrix."""
    shrink: Callable[[Tensor, float, float], None] | None = None
    """Of a penalty: `shrink(weight, rate, strength)` changes the weight in place after each optimizer step."""

    learn: Callable[[Tensor, Tensor, Tensor], None] | None = None
    """Of scores learnt in fine-tuning: `learn(scores, weight, gradient)` changes them in place at each step."""
    structure: bool = False
    """Whether the method removes parts of the model (`stages.pruning.structure`); then none of the others is given."""

    @property
    def changes_weights(self) -> bool:
        """Whether what is kept has other values than before."""
        return self.shrink is not None or (self.layerwise is not None and self.layerwise.updates)


def find(method: str) -> Criterion:
    """The criterion of that name."""
    return importlib.import_module(f"stages.pruning.criteria.{method}").CRITERION
