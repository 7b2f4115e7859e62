"""Gradient: the mean over calibration batches of |dL/dw|.

A weight that the loss hardly reacts to is pruned, however large it is. Blalock et al. 2020, What is the State
of Neural Network Pruning?, section 2 compares it with the others.
"""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Context, Criterion
from stages.pruning.gradients import mean_over_batches


def importance(context: Context) -> dict[str, Tensor]:
    """Mean of |g|."""
    return mean_over_batches(context, lambda weight, gradient: gradient.abs())


CRITERION = Criterion(importance)
