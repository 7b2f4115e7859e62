"""Zeros in what a structure leaves: its smallest weights, by the general rules of params `prune`.

By magnitude alone: that needs nothing but the weights, whatever the round of fine-tuning, and what a round has set to
zero is the first to be so in the next.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from stages.bitmasks import Masks
from stages.params import Prune
from stages.pruning import engine
from stages.pruning.criterion import Context, Criterion
from stages.pruning.scores import magnitudes


def shares(sparsity: float, rules: Prune) -> tuple[float, float]:
    """How a level's sparsity is divided: what share of the budget goes, and what share of what is left is zero.

    Zeros count as what is gone where the budget is of parameters: (1 - sparsity) = (1 - gone) * (1 - zero). They save
    no operations and no time, so that other budgets are met without them. Of a sparsity below their share all is zeros.
    """
    zero = min(rules.structured.zeros, sparsity) if rules.structured.budget == "parameters" else rules.structured.zeros
    if not sparsity or not zero:
        return sparsity, 0.0
    return (1 - (1 - sparsity) / (1 - zero) if rules.structured.budget == "parameters" else sparsity), zero


def choose(
    context: Context,
    names: Mapping[str, str],
    rules: Prune,
    share: float,
    progress: float = 1.0,
    outliers: Mapping[str, float] | None = None,
) -> Masks:
    """Masks that prune exactly round(share * progress * n) of the n eligible weights that are left.

    Args:
        context: the smaller model.
        names: of the matrices that are left, by their names in the dense model, which `rules.layers` match.
        rules: what is compared with what.
        share: of `shares`.
        progress: how far the level is on its way to its sparsity.
        outliers: of `engine.outliers`, of the dense model, by its names.

    Raises:
        UserError: the rules cannot be met.
    """
    layers: dict[str, float] = {}
    for pattern, own in rules.layers.items():
        for dense in fnmatch.filter(names, pattern):
            layers.setdefault(names[dense], own)
    ranked = replace(context, settings=rules.magnitude)
    there = rules.model_copy(update={"layers": layers})
    left = {own: outliers[dense] for dense, own in names.items() if dense in outliers} if outliers else None
    return engine.choose(ranked, Criterion(magnitudes), share * progress, there, progress=progress, outliers=left)
