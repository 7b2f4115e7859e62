"""Wanda: |w_ij| * ||x_j||, with the norm of the input feature over all calibration tokens, within each output.

Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models, equation 1. No weight is updated.
"""

from __future__ import annotations

from torch import Tensor

from stages.pruning.criterion import Criterion
from stages.pruning.layerwise import Layer, Layerwise
from stages.pruning.statistics import Norms


def prune(layer: Layer) -> Tensor:
    """The mask [out, in]."""
    return layer.keep(layer.weight.abs() * layer.statistic.norms)


CRITERION = Criterion(layerwise=Layerwise(Norms, prune))
