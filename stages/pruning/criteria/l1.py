"""L1: magnitude after training with a lasso penalty on the eligible weights.

The penalty strength*|w| is applied as its proximal operator after each optimizer step. A subgradient would
only jitter around zero; soft-thresholding reaches it. Parikh and Boyd 2014, Proximal Algorithms, section 6.5.2.
"""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Criterion
from stages.pruning.scores import magnitudes


def shrink(weight: Tensor, rate: float, strength: float) -> None:
    """w <- sign(w) * max(0, |w| - rate*strength), in place."""
    weight.sub_(weight.clamp(-rate * strength, rate * strength))


CRITERION = Criterion(magnitudes, shrink=shrink)
