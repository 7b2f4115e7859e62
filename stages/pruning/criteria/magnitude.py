"""Magnitude: |w|. Han et al. 2015, Learning both Weights and Connections, section 3."""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Context, Criterion


def importance(context: Context) -> dict[str, Tensor]:
    """|w|."""
    return {name: weight.detach().abs() for name, weight in context.weights.items()}


CRITERION = Criterion(importance)
