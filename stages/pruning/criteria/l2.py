"""L2: magnitude after training with a squared-L2 penalty on the eligible weights.

The penalty strength/2 * w^2 is decoupled from the gradient, as an adaptive optimizer would otherwise scale it
away where gradients are large. Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
"""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Criterion
from stages.pruning.scores import magnitudes


def shrink(weight: Tensor, rate: float, strength: float) -> None:
    """w <- w * (1 - rate*strength), in place; to zero where that would change its sign."""
    weight.mul_(max(0.0, 1.0 - rate * strength))


CRITERION = Criterion(magnitudes, shrink=shrink)
