"""Random: uniform noise. The control that every criterion has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.pruning.criterion import Context, Criterion


def importance(context: Context) -> dict[str, Tensor]:
    """Noise in [0, 1) that depends on the seed alone, so that a higher sparsity prunes a superset."""
    generator = torch.Generator().manual_seed(context.seed)
    return {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in context.weights.items()
    }


CRITERION = Criterion(importance)
