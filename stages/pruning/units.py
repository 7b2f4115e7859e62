"""Whole heads and neurons at a time: masks of pattern `units`.

A unit is a head of one attention, or a neuron of one feed-forward network: its rows in some matrices and its columns in
another, which are pruned together, so that it hands nothing on. Layers may lose different numbers of them. The
checkpoint keeps its shapes, which a config describes; an export leaves the units out (`structure.compact`).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models.anatomy import Matrix
from stages.params import Prune
from stages.pruning.budget import check_patterns
from stages.pruning.criterion import Context, Criterion
from stages.pruning.masks import keep_all
from stages.pruning.selection import check_numbers
from stages.pruning.structure.axes import Dimension, Structure, describe

PATTERN = "units"


@dataclass(frozen=True)
class _Group:
    """Heads of an attention, or neurons of a feed-forward network, by the eligible matrices that they run through."""

    units: int
    size: int
    """Weights of each."""
    places: Mapping[str, tuple[int, Dimension]]
    """The dimension of a matrix that they lie along, by its name."""
    protected: bool
    stay: int
    """How many units are always kept."""


def choose(context: Context, criterion: Criterion, sparsity: float, rules: Prune, held: Masks | None = None) -> Masks:
    """Masks that prune round(sparsity * n) of the n eligible weights, to the nearest whole unit.

    A unit's score is the mean of its weights' scores. With scope `global` the lowest of all go; with scope `layer` each
    attention and each feed-forward network loses the same share of its own. The last unit of none goes, nor the
    highest of a criterion with a floor.

    Args:
        context: the model and what to look at.
        criterion: how weights are ranked.
        sparsity: share of all eligible weights, in [0, 1).
        rules: scope, and layers that are protected.
        held: weights already pruned, whose units stay so.

    Raises:
        UserError: a score is NaN, the model's family is not known, or there are not so many units.
    """
    structure = describe(context.model)
    groups = _groups(context.matrices, structure, rules, getattr(context.settings, "floor", 0.0))
    target = _target(groups, sparsity)
    assert criterion.importance is not None
    scores = _means(criterion.importance(context), groups, structure, held)
    scope = getattr(context.settings, "scope", rules.scope)
    gone = _lowest(groups, scores, target, alike=scope == "layer")
    masks = keep_all(context.weights)
    for axis, units in gone.items():
        for name, (place, dimension) in groups[axis].places.items():
            rows = dimension.indices(torch.tensor(units), groups[axis].units)
            masks.put(name, masks[name].index_fill(place, rows, False))
    return masks


def check(model: torch.nn.Module, matrices: Mapping[str, Matrix], sparsity: float, rules: Prune) -> None:
    """Find out, before anything is computed, whether a model can lose so many units.

    Raises:
        UserError: it cannot.
    """
    _target(_groups(matrices, describe(model), rules), sparsity)


def _groups(
    matrices: Mapping[str, Matrix], structure: Structure, rules: Prune, floor: float = 0.0
) -> dict[str, _Group]:
    """By name of the axis, in model order."""
    check_patterns(matrices, rules.layers)
    places: dict[str, dict[str, tuple[int, Dimension]]] = {}
    for name in matrices:
        for place, dimension in enumerate(structure.tensors[name]):
            if dimension and structure.axes[dimension.axis].kind != "width":
                places.setdefault(dimension.axis, {})[name] = place, dimension
    groups = {}
    for axis, found in places.items():
        units = structure.axes[axis].units
        size = sum(matrices[name].weight.numel() for name in found) // units
        protected = any(fnmatch.fnmatchcase(name, pattern) for name in found for pattern in rules.layers)
        groups[axis] = _Group(units, size, found, protected, max(math.ceil(floor * units), 1))
    return groups


def _target(groups: Mapping[str, _Group], sparsity: float) -> int:
    """Weights to prune.

    Raises:
        UserError: they are more than may go.
    """
    target = round(sparsity * sum(group.units * group.size for group in groups.values()))
    most = sum((group.units - group.stay) * group.size for group in groups.values() if not group.protected)
    if target > most:
        raise UserError(
            f"prune.pattern {PATTERN}: a sparsity of {sparsity:g} is {target} weights, and {most} may go, since one "
            "head or neuron of each layer stays, a method's floor of them, and all that prune.layers protects: choose "
            "another sparsity"
        )
    return target


def _means(
    importance: Mapping[str, Tensor], groups: Mapping[str, _Group], structure: Structure, held: Masks | None
) -> dict[str, Tensor]:
    """Mean score of the weights of each unit, fp64 on the CPU; -inf of one that is pruned already."""
    means = {}
    for axis, group in groups.items():
        total = torch.zeros(group.units, dtype=torch.float64)
        for name, (place, dimension) in group.places.items():
            scores = importance[name]
            check_numbers(scores, name)
            total += structure.per_unit(scores.double(), place, dimension).cpu()
            if held is not None:
                kept = structure.per_unit(held[name], place, dimension)
                total.masked_fill_(kept == 0, -torch.inf)
        means[axis] = total / group.size
    return means


def _lowest(
    groups: Mapping[str, _Group], scores: Mapping[str, Tensor], target: int, *, alike: bool
) -> dict[str, Sequence[int]]:
    """Units that go, by axis: the lowest, of equal ones the first, while the count comes nearer to the target.

    Those that score -inf are gone already, and first.
    """
    ranked: list[tuple[float, int, str, int]] = []
    gone: dict[str, list[int]] = {}
    left = target
    for number, (axis, group) in enumerate(groups.items()):
        if group.protected:
            continue
        order, values = scores[axis].argsort(stable=True).tolist(), scores[axis].tolist()
        for place, unit in enumerate(order[: group.units - group.stay]):
            if values[unit] == -math.inf:
                gone.setdefault(axis, []).append(unit)
                left -= group.size
                continue
            # By shares of its own each layer loses as many as the others do.
            rank = (place + 0.5) / group.units if alike else values[unit]
            ranked.append((rank, number, axis, unit))
    ranked.sort()
    for _, _, axis, unit in ranked:
        size = groups[axis].size
        if abs(left - size) >= abs(left):
            break
        left -= size
        gone.setdefault(axis, []).append(unit)
    return {axis: sorted(units) for axis, units in gone.items()}
