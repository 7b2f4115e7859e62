"""How much each unit matters: a score for every unit of every axis, and the order in which layers may go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UserError
from stages.models.anatomy import Side
from stages.models.checkpoint import IGNORED
from stages.pruning.criterion import NO_CALIBRATION, Context
from stages.pruning.gradients import total_loss
from stages.pruning.layerwise import walk
from stages.pruning.statistics import Statistic
from stages.pruning.structure.axes import Dimension, Structure
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole

Scores = dict[str, Tensor]
"""By name of the axis, fp32 [units]; the lowest go first."""


def norm(context: Context, structure: Structure) -> Scores:
    """L2 norm of a unit's weights, in every tensor it runs through."""
    values = ((name, parameter.detach().square()) for name, parameter in context.model.named_parameters())
    return {name: total.sqrt() for name, total in _summed(values, structure).items()}


def taylor(context: Context, structure: Structure) -> Scores:
    """|sum of w*g| over a unit's weights, the mean over calibration batches of the absolute value.

    How much the loss changes, to the first order, when the unit is set to zero: Molchanov et al. 2019, equation 8, of
    groups of weights. Within a unit effects of opposite sign cancel, as they do when it is removed.
    """
    return _taylor(context, structure, lambda product: product)


def taylor_sum(context: Context, structure: Structure) -> Scores:
    """Sum of |w*g| over a unit's weights: what its weights would cost if each went by itself."""
    return _taylor(context, structure, torch.abs)


def gate(context: Context, structure: Structure) -> Scores:
    """|dL/dm| of a gate m = 1 on what a unit hands on, the mean over calibration batches.

    Michel et al. 2019, Are sixteen heads really better than one, equation 2, with a gate on neurons and on the
    dimensions of the width as well. A gate on the input of a matrix has the gradient sum of w*g over its column, so
    that only matrices that read the unit count.
    """
    return _taylor(context, structure, lambda product: product, readers=True)


def activation(context: Context, structure: Structure) -> Scores:
    """Mean |x| of what a unit hands on, over tokens and over the matrices that read it (Muralidharan et al. 2024).

    Padding does not count.
    """
    found: dict[str, list[Tensor]] = {}

    def visit(block: str, statistics: dict[str, Statistic]) -> None:
        for name, statistic in statistics.items():
            _, dimension = structure.read(context.matrices[name])
            if dimension and isinstance(statistic, _Magnitudes):
                mean = statistic.sums / max(statistic.tokens, 1)
                found.setdefault(dimension.axis, []).append(structure.per_unit(mean, 0, dimension))

    walk(context, _Magnitudes, visit)
    return {name: torch.stack(means).mean(dim=0) for name, means in found.items()}


UNITS: Mapping[str, Callable[[Context, Structure], Scores]] = {
    "norm": norm,
    "group_lasso": norm,  # after the training of `group_lasso`
    "taylor": taylor,
    "taylor_sum": taylor_sum,
    "gate": gate,
    "activation": activation,
}
"""By name in params `prune.structured.score`."""


def units(context: Context, structure: Structure, score: str) -> Scores:
    """Scores of all axes by one of `UNITS`.

    Raises:
        UserError: one is not finite, or there are no calibration texts.
    """
    found = UNITS[score](context, structure)
    for name, scores in found.items():
        if not bool(scores.isfinite().all()):
            raise UserError(f"the score of {name} is not finite: the model has diverged; lower the learning rate")
    return found


def mean_loss(context: Context) -> float:
    """Mean -log p of a calibration token, in nats."""
    total, tokens = 0.0, 0
    with context.evaluating(), torch.no_grad():
        for batch in context.batches():
            total += float(total_loss(context.model, batch))
            tokens += int((batch["labels"] != IGNORED).sum())
    if not tokens:
        raise UserError(NO_CALIBRATION)
    return total / tokens


def layers_by_loss(context: Context, structure: Structure, goes: Mapping[Side, int]) -> dict[Side, tuple[int, ...]]:
    """Blocks that are kept when one after another goes that raises the loss least, the others being there.

    Args:
        context: the model and its calibration batches.
        structure: of the model.
        goes: how many blocks each side loses.
    """
    kept = {side: list(blocks) for side, blocks in whole(structure).layers.items()}
    for side, count in goes.items():
        for _ in range(count):
            losses = {block: _loss_without(context, structure, kept, side, block) for block in kept[side]}
            kept[side].remove(min(losses, key=lambda block: (losses[block], block)))
    return {side: tuple(blocks) for side, blocks in kept.items()}


def layers_by_output(context: Context, structure: Structure, goes: Mapping[Side, int]) -> dict[Side, tuple[int, ...]]:
    """Blocks that are kept when those go that change their input least: 1 - cos(in, out), the mean over tokens.

    Men et al. 2024, ShortGPT, equation 1 (block influence). One pass for all blocks; padding counts as well.
    """
    influence: dict[tuple[Side, int], list[float]] = {}
    hooks = []
    model: Any = context.model
    for side, stack in structure.stacks.items():
        for index, block in enumerate(model.get_submodule(stack.prefix)):
            record = influence.setdefault((side, index), [])
            hooks.append(block.register_forward_hook(_influence(record), with_kwargs=True))
    try:
        mean_loss(context)
    finally:
        for hook in hooks:
            hook.remove()
    kept = {}
    for side, blocks in whole(structure).layers.items():
        ranked = sorted(blocks, key=lambda block: (sum(influence[side, block]), block))
        kept[side] = tuple(sorted(ranked[goes.get(side, 0) :]))
    return kept


LAYERS: Mapping[str, Callable[[Context, Structure, Mapping[Side, int]], dict[Side, tuple[int, ...]]]] = {
    "loss": layers_by_loss,
    "output": layers_by_output,
}
"""By name in params `prune.structured.layer_score`."""


class _Magnitudes:
    """Sum of |x| of every input feature."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.sums = torch.zeros(inputs, device=device)

    def add(self, inputs: Tensor) -> None:
        self.tokens += len(inputs)
        self.sums += inputs.abs().sum(dim=0)


def _taylor(
    context: Context, structure: Structure, each: Callable[[Tensor], Tensor], *, readers: bool = False
) -> Scores:
    """Mean over the batches of |sum of each(w*g)|, over all of a unit's weights or those that read it."""
    model: Any = context.model
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if readers:
        weights = {name: matrix.weight for name, matrix in context.matrices.items()}
    totals: Scores = {}
    count = 0
    with context.evaluating():
        for batch in context.batches():
            gradients = torch.autograd.grad(
                model(**batch).loss, list(weights.values()), allow_unused=True, materialize_grads=True
            )
            products = ((n, each(w.detach() * g)) for (n, w), g in zip(weights.items(), gradients, strict=True))
            if readers:
                summed = _summed(products, structure, {n: structure.read(m)[1] for n, m in context.matrices.items()})
            else:
                summed = _summed(products, structure)
            for name, value in summed.items():
                totals[name] = totals.get(name, 0) + value.abs()
            count += 1
    if not count:
        raise UserError(NO_CALIBRATION)
    return {name: total / count for name, total in totals.items()}


def _summed(
    values: Iterable[tuple[str, Tensor]], structure: Structure, along: Mapping[str, Dimension | None] | None = None
) -> Scores:
    """Sums over each unit of what is given of every weight.

    Args:
        values: by name of the parameter, of its shape.
        structure: of the model.
        along: the one dimension of each that counts; None: all of them.
    """
    totals: Scores = {}
    for name, value in values:
        for place, dimension in enumerate(structure.tensors[name]):
            if dimension and (along is None or along[name] is dimension):
                summed = structure.per_unit(value, place, dimension)
                totals[dimension.axis] = totals[dimension.axis] + summed if dimension.axis in totals else summed
    return totals


def _loss_without(
    context: Context, structure: Structure, kept: Mapping[Side, Sequence[int]], side: Side, block: int
) -> float:
    layers = {other: tuple(b for b in blocks if (other, b) != (side, block)) for other, blocks in kept.items()}
    with masked(context.model, Plan(layers), structure):
        return mean_loss(context)


def _influence(record: list[float]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        record.append(1 - float(functional.cosine_similarity(before, after, dim=-1).double().mean()))

    return hook
