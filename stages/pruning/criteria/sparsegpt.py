"""SparseGPT: w_j^2 / [H^-1]_jj, and what is kept makes up for what is pruned.

H is the Hessian of a row's squared output error. Going through the inputs from left to right, each with the inverse of
those that are left, a pruned w_j changes every later weight of its row by -w_j [H^-1]_j,: / [H^-1]_jj, which is the
least that its loss can do. The mask is chosen for a block of columns at a time, with the weights as they are by then;
of a pattern N:M for each group. Frantar and Alistarh 2023, SparseGPT, algorithm 1.

Weights of an input that was always zero go first. The published code zeroes all of them; here those beyond the count
keep their value, which no calibration text can tell from zero, so that the sparsity is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.pruning import hessian
from stages.pruning.criterion import Criterion
from stages.pruning.layerwise import Layer, Layerwise
from stages.pruning.patterns import Grouped
from stages.pruning.statistics import Gram


def prune(layer: Layer) -> Tensor:
    """The mask [out, in]; changes the weights that it keeps."""
    settings = layer.settings
    factor = hessian.inverse_factor(hessian.damped(layer.statistic, settings.damping, layer.name), layer.name)
    # Of the loss w^2 / U_jj^2; none where no input ever came.
    sensitivity = factor.diagonal().square().masked_fill(hessian.dead(layer.statistic), math.inf)

    weight = layer.weight.float().clone(memory_format=torch.contiguous_format)
    inputs = weight.shape[1]
    kept = torch.ones_like(weight, dtype=torch.bool)
    width = math.ceil(settings.block_columns / layer.pattern.columns) * layer.pattern.columns
    for start in range(0, inputs, width):
        block = slice(start, min(start + width, inputs))
        errors = _prune_block(layer, weight[:, block], kept[:, block], factor[block, block], sensitivity[block], start)
        weight[:, block.stop :] -= errors @ factor[block, block.stop :]
    layer.weight.copy_(weight)
    return kept


def _prune_block(layer: Layer, weight: Tensor, kept: Tensor, factor: Tensor, sensitivity: Tensor, start: int) -> Tensor:
    """Prune some columns, in place, and return what the columns after them have to make up for.

    Args:
        layer: the whole matrix.
        weight: [out, columns], changed.
        kept: their mask, changed.
        factor: [columns, columns], of the inverse Hessian.
        sensitivity: [columns], by which squared weights are divided to rank them.
        start: first of the columns.
    """
    columns = weight.shape[1]
    # A group is chosen when all before it are done; anything else when the block begins.
    together = layer.pattern.group if isinstance(layer.pattern, Grouped) else columns
    errors = torch.zeros_like(weight)
    for column in range(columns):
        if column % together == 0:
            window = slice(column, column + together)
            kept[:, window] = layer.keep(weight[:, window].square() / sensitivity[window], start + column)
        lost = weight[:, column].masked_fill(kept[:, column], 0.0)
        errors[:, column] = lost / factor[column, column]
        weight[:, column] -= lost
        weight[:, column + 1 :] -= torch.outer(errors[:, column], factor[column, column + 1 :])
    return errors


CRITERION = Criterion(layerwise=Layerwise(Gram, prune, updates=True))
