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


def removed(sparsity: float, rules: Prune) -> float:
    """Share of a structure's budget that has to go, for a level to have its sparsity.

    Zeros count as what is gone where the budget is of parameters: (1 - sparsity) = (1 - removed) * (1 - zeros). They
    save no operations and no time, so that other budgets are met without them.
    """
    structured = rules.structured
    if structured.budget != "parameters":
        return sparsity
    return max(0.0, 1 - (1 - sparsity) / (1 - structured.zeros))


def choose(context: Context, names: Mapping[str, str], rules: Prune, progress: float = 1.0) -> Masks:
    """Masks that prune exactly round(zeros * progress * n) of the n eligible weights that are left.

    Args:
        context: the smaller model.
        names: of the matrices that are left, by their names in the dense model, which `rules.layers` match.
        rules: how many, and what is compared with what.
        progress: how far the level is on its way to its sparsity.

    Raises:
        UserError: the rules cannot be met.
    """
    layers: dict[str, float] = {}
    for pattern, share in rules.layers.items():
        for dense in fnmatch.filter(names, pattern):
            layers.setdefault(names[dense], share)
    share = rules.structured.zeros * progress
    ranked = replace(context, settings=rules.magnitude)
    there = rules.model_copy(update={"layers": layers})
    return engine.choose(ranked, Criterion(magnitudes), share, there, progress=progress)
