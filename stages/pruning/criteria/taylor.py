"""Taylor: the mean over calibration batches of |w * dL/dw|.

First-order estimate of how much the loss changes when w is set to zero. The absolute value is taken per batch:
taken of the sum, effects of opposite sign would hide each other. Lee et al. 2019 (SNIP), equation 5; Molchanov
et al. 2019, equation 8.
"""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Context, Criterion
from stages.pruning.gradients import mean_over_batches


def importance(context: Context) -> dict[str, Tensor]:
    """Mean of |w * g|."""
    return mean_over_batches(context, lambda weight, gradient: (weight * gradient).abs())


CRITERION = Criterion(importance)
