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
    factor = hessian.shared_factor(layer.statistic, settings.damping, layer.name)
    # Of the loss w^2 / U_jj^2; none where no input ever came.
    sensitivity = factor.diagonal().square().masked_fill(layer.statistic.dead, math.inf)

    weight = layer.weight.float()
    inputs = weight.shape[1]
    kept = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    width = math.ceil(settings.block_columns / layer.pattern.columns) * layer.pattern.columns
    for start in range(0, inputs, width):
        block = slice(start, min(start + width, inputs))
        # As rows, so that what is done to a column is done to numbers that lie together.
        columns = weight[:, block].T.contiguous()
        errors = _prune_block(layer, columns, kept[:, block], factor[block, block], sensitivity[block], start)
        weight[:, block] = columns.T
        weight[:, block.stop :].addmm_(errors.T, factor[block, block.stop :], alpha=-1)
    if weight is not layer.weight:
        layer.weight.copy_(weight)
    return kept


TOGETHER = 32
"""Columns after which those before are made up for in the rest of their block, at once."""


def _prune_block(
    layer: Layer, columns: Tensor, kept: Tensor, factor: Tensor, sensitivity: Tensor, start: int
) -> Tensor:
    """Prune some columns, in place, and return what the columns after them have to make up for, [columns, out].

    Args:
        layer: the whole matrix.
        columns: [columns, out], changed.
        kept: their mask, [out, columns], changed.
        factor: [columns, columns], of the inverse Hessian.
        sensitivity: [columns], by which squared weights are divided to rank them.
        start: first of the columns.
    """
    count = len(columns)
    # A group is chosen when all before it are done; anything else when the block begins.
    together = layer.pattern.group if isinstance(layer.pattern, Grouped) else count
    step = math.ceil(TOGETHER / together) * together if together < count else TOGETHER
    errors = torch.empty_like(columns)
    for first in range(0, count, step):
        stop = min(first + step, count)
        for column in range(first, stop):
            if column % together == 0:
                window = slice(column, column + together)
                scores = columns[window].square() / sensitivity[window].unsqueeze(1)
                kept[:, window] = layer.keep(scores.T, start + column)
            lost = columns[column].masked_fill(kept[:, column], 0.0)
            torch.div(lost, factor[column, column], out=errors[column])
            columns[column] -= lost
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], errors[column], alpha=-1)
        columns[stop:].addmm_(factor[first:stop, stop:].T, errors[first:stop], alpha=-1)
    return errors


CRITERION = Criterion(layerwise=Layerwise(Gram, prune, updates=True))
