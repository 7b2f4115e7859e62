"""RIA: |w_ij| * (1 / sum of |w| of input j + 1 / sum of |w| of output i) * ||x_j||^power.

A weight counts by its part in all that leaves its input and all that reaches its output, so that no channel is pruned
whole because its weights are small; the power tames the norms of outlying inputs. Zhang et al. 2024, Plug-and-Play: An
Efficient Post-training Pruning Method for Large Language Models (relative importance and activations); the formula is
that of its published code. No weight is updated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pruning.criterion import Criterion
from stages.pruning.layerwise import Layer, Layerwise
from stages.pruning.statistics import Norms


def prune(layer: Layer) -> Tensor:
    """The mask [out, in]."""
    weight = layer.weight.abs()
    # Sums of a row or column that is pruned whole are zero, and so are its weights.
    smallest = torch.finfo(weight.dtype).tiny
    inputs, outputs = (weight.sum(dim=dim, keepdim=True).clamp(min=smallest) for dim in (0, 1))
    return layer.keep((weight / inputs + weight / outputs) * layer.statistic.norms**layer.settings.power)


CRITERION = Criterion(layerwise=Layerwise(Norms, prune))
