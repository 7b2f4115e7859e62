"""From a criterion and a sparsity to masks: which weights of which matrices, by the rules of params `prune`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models.anatomy import Matrix
from stages.params import Prune
from stages.params.prune import ROUNDED
from stages.pruning import budget, patterns, units
from stages.pruning.criterion import Context, Criterion
from stages.pruning.layerwise import outlier_ratios, prune_in_order
from stages.pruning.masks import keep_whole
from stages.pruning.patterns import Grouped, Pattern
from stages.pruning.scores import Scores
from stages.pruning.selection import Cut, Pieces, keep_lowest_out, lowest


def choose(
    context: Context,
    criterion: Criterion,
    sparsity: float,
    rules: Prune,
    *,
    held: Masks | None = None,
    progress: float = 1.0,
    outliers: Mapping[str, float] | None = None,
) -> Masks:
    """Masks that prune exactly round(sparsity * n) of the n eligible weights.

    Of a pattern of blocks or units the count is exact to one of them, and N:M is what `Prune.nearest` says. Of a
    criterion that updates weights, those that are kept are changed in place.

    Args:
        context: the model and what to look at.
        criterion: how weights are ranked.
        sparsity: share of all eligible weights, in [0, 1).
        rules: pattern, scope, allocation, and layers with a sparsity of their own.
        held: weights already pruned, which stay so.
        progress: how far the sparsity is on its way to the target: layers with one of their own keep pace with it.
        outliers: of `outliers`, found when nothing was pruned yet; None: nothing is.

    Raises:
        UserError: a score is NaN, or the rules cannot be met.
    """
    if rules.pattern == units.PATTERN:
        return units.choose(context, criterion, sparsity, rules, held)
    pattern, matrices = patterns.parse(rules.pattern), context.matrices
    sizes, gone = _sizes(matrices, pattern), _gone(matrices, pattern, held)
    planned = _planned(matrices, pattern, sizes, sparsity, rules, gone, progress)
    floor = getattr(context.settings, "floor", 0.0)

    # Whether every weight is scored by itself, so that scores may be made in pieces.
    alone = pattern == patterns.Unstructured() and held is None and not floor

    def units_of(scores: Mapping[str, Tensor]) -> Scores:
        if alone:
            found = scores if isinstance(scores, Scores) else Scores(scores, scores.__getitem__)
            return found.moved(lambda name, tensor: matrices[name].oriented(tensor))
        return Scores(scores, lambda name: _floored(_units(scores[name], matrices[name], pattern, held), floor, name))

    scope = getattr(context.settings, "scope", rules.scope)
    if criterion.importance and scope == "global":
        _check_floor(floor, sizes, planned.fixed, planned.rest)
        return _across(units_of(criterion.importance(context)), matrices, pattern, planned)

    counts = planned.fixed | _spread(context, planned, sizes, rules, gone, outliers)
    _check(pattern, matrices, {name: counts[name] / max(sizes[name], 1) for name in sizes})
    if criterion.layerwise:
        return prune_in_order(context, criterion.layerwise, counts, pattern, held)
    assert criterion.importance is not None
    _check_floor(floor, sizes, counts, 0)
    scores = units_of(criterion.importance(context))
    return _each(scores, matrices, pattern, counts, rows=scope == "row", alone=alone)


def outliers(context: Context, rules: Prune) -> dict[str, float] | None:
    """By how many outliers `allocation: owl` divides the sparsity between matrices; None where it does not.

    To be found once, of the dense model: the more zeros a matrix has, the more outliers there seem to be beside them.

    Raises:
        UserError: there are no calibration texts, or none reaches a matrix.
    """
    if rules.allocation != "owl":
        return None
    own = budget.own_shares(context.matrices, rules.layers)
    others = [name for name, share in own.items() if share is None]
    return outlier_ratios(context, rules.owl.threshold, others) if others else {}


def check(model: nn.Module, matrices: Mapping[str, Matrix], sparsity: float, rules: Prune) -> None:
    """Find out, before anything is computed, whether the rules can be met.

    What scores decide, as `allocation: owl` lets them, is found out by `choose` alone.

    Raises:
        UserError: they cannot.
    """
    if rules.pattern == units.PATTERN:
        units.check(model, matrices, sparsity, rules)
        return
    pattern = patterns.parse(rules.pattern)
    _planned(matrices, pattern, _sizes(matrices, pattern), sparsity, rules, _gone(matrices, pattern, None), 1.0)


def _planned(
    matrices: Mapping[str, Matrix],
    pattern: Pattern,
    sizes: Mapping[str, int],
    sparsity: float,
    rules: Prune,
    gone: Mapping[str, int],
    progress: float,
) -> budget.Budget:
    layers = {name: rules.nearest(share) * progress for name, share in rules.layers.items()}
    unit = "weights" if pattern.size == 1 else f"blocks of {rules.pattern}"
    if isinstance(pattern, Grouped) and sparsity:
        sparsity = _of_groups(sizes, pattern, sparsity / progress, rules) * progress
    planned = budget.divide(sizes, sparsity, layers, gone, unit=unit)
    mean = planned.rest / max(sum(sizes[name] for name in planned.others), 1)
    fixed = planned.fixed
    _check(pattern, matrices, {n: fixed[n] / max(sizes[n], 1) if n in fixed else mean for n in sizes})
    return planned


def _of_groups(sizes: Mapping[str, int], pattern: Grouped, sparsity: float, rules: Prune) -> float:
    """The sparsity with which every matrix that is not left out has the pattern N:M in each group.

    Raises:
        UserError: the one asked for is another, in three digits.
    """
    own = budget.own_shares(sizes, rules.layers)
    losing = sum(size for name, size in sizes.items() if own[name] != 0)
    exact = pattern.sparsity * losing / sum(sizes.values())
    if abs(sparsity - exact) > ROUNDED:
        raise UserError(
            f"prune.pattern {rules.pattern} of the matrices that prune.layers does not protect is a sparsity of "
            f"{exact:.3f} over all, not {sparsity:g}: ask for {exact:.3f}"
        )
    return exact


def _each(
    scores: Scores,
    matrices: Mapping[str, Matrix],
    pattern: Pattern,
    counts: Mapping[str, int],
    *,
    rows: bool,
    alone: bool,
) -> Masks:
    """A threshold for each matrix, or for each row of it; scores are of units."""
    masks = Masks()
    for name, matrix in matrices.items():
        if not counts[name]:
            masks.put(name, keep_whole(matrix.weight))
            continue
        if alone and not rows:
            made = partial(scores.pieces, name)
            kept, _ = _marked(lowest({name: made}, counts[name]), made, matrix, pattern, 0)
        else:
            # Not named, so that the scores of one matrix are gone before those of the next are computed.
            kept = keep_lowest_out(scores[name], counts[name], rows=rows, name=name)
        masks.put(name, _expanded(kept, matrix, pattern))
    return masks


def _across(
    scores: Scores,
    matrices: Mapping[str, Matrix],
    pattern: Pattern,
    planned: budget.Budget,
) -> Masks:
    """One threshold over all matrices without a sparsity of their own; scores are of units."""
    candidates = sum(pattern.candidates(matrices[name].weight.numel() // pattern.size) for name in planned.others)
    everything = planned.rest == candidates  # no threshold then: each matrix loses all that it can
    cut = None if everything else lowest({name: partial(scores.pieces, name) for name in planned.others}, planned.rest)
    masks, met = Masks(), 0
    for name, matrix in matrices.items():
        if planned.fixed.get(name) == 0:
            masks.put(name, keep_whole(matrix.weight))
            continue
        if cut is None or name in planned.fixed:
            most = pattern.candidates(matrix.weight.numel() // pattern.size)
            kept = keep_lowest_out(scores[name], planned.fixed.get(name, most), rows=False, name=name)
        else:
            kept, met = _marked(cut, partial(scores.pieces, name), matrix, pattern, met)
        masks.put(name, _expanded(kept, matrix, pattern))
    return masks


def _marked(cut: Cut, scores: Pieces, matrix: Matrix, pattern: Pattern, met: int) -> tuple[Tensor, int]:
    """Which units of a matrix [rows, columns] are kept, when `met` ties came before them; and the ties met by now."""
    rows = matrix.oriented(matrix.weight).shape[0] // pattern.rows
    kept = torch.empty(rows, matrix.weight.numel() // pattern.size // rows, dtype=torch.bool)
    return kept, cut.mark(kept, scores, met)


def _spread(
    context: Context,
    planned: budget.Budget,
    sizes: Mapping[str, int],
    rules: Prune,
    gone: Mapping[str, int],
    ratios: Mapping[str, float] | None,
) -> dict[str, int]:
    """Counts of the matrices without a sparsity of their own, each by itself."""
    others = {name: sizes[name] for name in planned.others}
    shares = None
    if rules.allocation == "owl" and others and planned.rest:
        ratios = ratios or outliers(context, rules)
        assert ratios is not None
        mean = planned.rest / sum(others.values())
        shares = budget.outlier_shares(ratios, others, mean, rules.owl.spread)
    return budget.apportion(planned.rest, others, shares, gone)


def _sizes(matrices: Mapping[str, Matrix], pattern: Pattern) -> dict[str, int]:
    """Units of each matrix."""
    return {name: matrix.weight.numel() // pattern.size for name, matrix in matrices.items()}


def _gone(matrices: Mapping[str, Matrix], pattern: Pattern, held: Masks | None) -> dict[str, int]:
    """Units of each matrix that are pruned already."""
    if held is None:
        return dict.fromkeys(matrices, 0)
    return {name: int((~held[name]).sum()) // pattern.size for name in matrices}


def _units(scores: Tensor, matrix: Matrix, pattern: Pattern, held: Masks | None) -> Tensor:
    """Scores of a matrix's units [rows, columns]; what is pruned already ranks below everything."""
    scores = matrix.oriented(scores)
    if held is not None:
        scores = scores.masked_fill(~matrix.oriented(held[matrix.name]).to(scores.device), -math.inf)
    return pattern.scores(scores).contiguous()


def _floored(scores: Tensor, floor: float, name: str) -> Tensor:
    """Scores of a matrix's units, the highest there is for the share of them that is always kept."""
    if not floor:
        return scores
    others = scores.numel() - math.ceil(floor * scores.numel())
    kept = keep_lowest_out(scores, others, rows=False, name=name)
    # Not infinite: that is for weights which an N:M pattern keeps.
    return scores.masked_fill(kept & scores.isfinite(), torch.finfo(scores.dtype).max)


def _check_floor(floor: float, sizes: Mapping[str, int], counts: Mapping[str, int], rest: int) -> None:
    """Check that a criterion's floor leaves each matrix what it is to lose, and the others together theirs."""
    if not floor:
        return
    # One more may go of each where counts are rounded up.
    most = {name: size - math.ceil(floor * size) + 1 for name, size in sizes.items()}
    wrong = [f"{name} is to lose {count} of {sizes[name]}" for name, count in counts.items() if count > most[name]]
    others = [name for name in sizes if name not in counts]
    if rest > sum(most[name] for name in others):
        wrong.append(f"those without a share in prune.layers are to lose {rest} of {sum(sizes[n] for n in others)}")
    if wrong:
        raise UserError(
            f"the method's floor keeps {floor:g} of each matrix, but {wrong[0]}: lower it, or choose other prune.layers"
        )


def _expanded(units: Tensor, matrix: Matrix, pattern: Pattern) -> Tensor:
    return matrix.oriented(pattern.expand(units)).contiguous()


def _check(pattern: Pattern, matrices: Mapping[str, Matrix], shares: Mapping[str, float]) -> None:
    """Check that every matrix that loses weights can have the pattern."""
    for name, matrix in matrices.items():
        if shares[name]:
            pattern.check(name, matrix.oriented(matrix.weight).shape, shares[name])
