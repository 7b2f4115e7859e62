"""DSnoT: swaps weights of a mask until the expected output error of each row is near zero.

Pruning changes an output by e = sum of w_j x_j over its pruned weights. As long as |E[e]| is above a threshold, a row
takes back the pruned weight with the most of sign(E[e]) w_j E[x_j] / Var[x_j], and prunes for it the kept weight with
the least |w_j| ||x_j|| of those whose contribution w_j E[x_j] has the other sign, or, of a pattern N:M, of those in
the same group. Nothing moves back. Zhang et al. 2024, Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse
LLMs; the steps are those of its published code. No weight is updated.

The published code goes on when a swap makes the error larger, as it may with the last one; here such a swap is not
made and its row is done.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.errors import UserError
from stages.pruning.criterion import Criterion
from stages.pruning.layerwise import Layer, Layerwise
from stages.pruning.patterns import Blocks, Grouped
from stages.pruning.statistics import Moments


def prune(layer: Layer) -> Tensor:
    """The mask [out, in].

    Raises:
        UserError: the pattern is one of blocks.
    """
    if isinstance(layer.pattern, Blocks):
        raise UserError("dsnot swaps single weights, prune.pattern has blocks: choose another pattern or method")
    wanda = layer.weight.abs() * layer.statistic.norms
    initial = wanda if layer.settings.initial == "wanda" else layer.weight.abs()
    return refine(layer, layer.keep(initial), wanda)


def refine(layer: Layer, kept: Tensor, cost: Tensor) -> Tensor:
    """Swap weights of a mask [out, in]; each row keeps as many as before.

    Args:
        layer: the matrix, none of its weights set to zero by this mask yet.
        kept: the mask to begin with.
        cost: [out, in], of pruning a weight.
    """
    contribution = layer.weight * layer.statistic.mean
    # A feature that hardly varies is the best to correct a mean with.
    growth = contribution / layer.statistic.variance.clamp(min=torch.finfo(torch.float32).tiny)
    prunable, growable = kept, ~kept if layer.held is None else ~kept & layer.held
    kept = kept.clone()
    error = contribution.masked_fill(kept, 0.0).sum(dim=1, keepdim=True)
    active = torch.ones_like(error, dtype=torch.bool)
    for _ in range(layer.settings.cycles):
        active &= error.abs() > layer.settings.threshold
        if not bool(active.any()):
            break
        effect = contribution * error.sign()  # above zero: the error is lower with this weight than without
        helps = growable & ~kept & (effect > 0)
        grown = (growth * error.sign()).masked_fill(~helps, -math.inf).argmax(dim=1, keepdim=True)
        answers = prunable & kept & _partners(layer, grown, effect)
        pruned = cost.masked_fill(~answers, math.inf).argmin(dim=1, keepdim=True)
        after = error - contribution.gather(1, grown) + contribution.gather(1, pruned)
        active &= helps.gather(1, grown) & answers.gather(1, pruned) & (after.abs() < error.abs())
        error = torch.where(active, after, error)
        kept.scatter_(1, grown, kept.gather(1, grown) | active).scatter_(1, pruned, kept.gather(1, pruned) & ~active)
    return kept


def _partners(layer: Layer, grown: Tensor, effect: Tensor) -> Tensor:
    """Which weights [out, in] may be pruned for the one that each row grows, [out, 1]."""
    if not isinstance(layer.pattern, Grouped):
        return effect < 0
    groups = torch.arange(effect.shape[1], device=effect.device) // layer.pattern.group
    return groups == grown // layer.pattern.group


CRITERION = Criterion(layerwise=Layerwise(Moments, prune))
