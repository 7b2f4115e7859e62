"""What a pruning criterion is, and how one is found.

A criterion is one module under `stages/pruning/criteria/`, named as in params.yaml, that defines
`CRITERION`. To add one: write that file, add its name to `Method` and its knobs to `Prune` in
stages/params.py and params.yaml, and give it a test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

Batches = Callable[[], Iterable[dict[str, Tensor]]]
"""Gives the calibration batches, on the model's device, the same ones at every call."""


@dataclass(frozen=True)
class Context:
    """What a criterion may look at."""

    model: nn.Module
    """In evaluation mode; its weights are not to be changed."""
    weights: Mapping[str, nn.Parameter]
    """Eligible weight matrices by name."""
    batches: Batches
    seed: int


@dataclass(frozen=True)
class Criterion:
    """How weights are ranked, and the training that prepares them for it, if any."""

    importance: Callable[[Context], dict[str, Tensor]]
    """Score of every eligible weight, fp32, of the weight's shape; the lowest are pruned."""
    shrink: Callable[[Tensor, float, float], None] | None = field(default=None)
    """Of a penalty: `shrink(weight, rate, strength)` changes the weight in place after each optimizer step."""


def find(method: str) -> Criterion:
    """The criterion of that name."""
    return importlib.import_module(f"stages.pruning.criteria.{method}").CRITERION
