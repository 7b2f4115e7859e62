"""Scores made of derivatives of the loss on calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.models.likelihood import aligned, cross_entropy
from stages.pruning.criterion import NO_CALIBRATION, Context

Batch = dict[str, Tensor]
Loss = Callable[[Any, Batch], Tensor]
"""`loss(model, batch)`, a scalar."""


def mean_loss(model: Any, batch: Batch) -> Tensor:
    """The model's own loss: cross-entropy, the mean over the batch's target tokens."""
    return model(**batch).loss


def total_loss(model: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """-log p of the batch's targets, summed over their tokens; logits are divided by the temperature before."""
    logits = model(**batch).logits / temperature
    return cross_entropy(*aligned(logits, batch["labels"], causal=not model.config.is_encoder_decoder))


def mean_over_batches(
    context: Context, score: Callable[[Tensor, Tensor], Tensor], loss: Loss = mean_loss
) -> dict[str, Tensor]:
    """Mean over the calibration batches of `score(weight, gradient)`, fp32, for every eligible weight.

    Runs in evaluation mode (no dropout), and leaves gradients and training mode of the model as they were.

    Raises:
        UserError: no calibration batch, a value that is not finite, or all of them are zero.
    """

    def scores(batch: Batch, weights: Sequence[nn.Parameter]) -> Iterator[Tensor]:
        gradients = _gradients(loss(context.model, batch), weights)
        return (score(weight.detach(), gradient) for weight, gradient in zip(weights, gradients, strict=True))

    return _mean(context, scores)


def hessian_product(context: Context, vector: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
    """H v, fp32, for every eligible weight: H the Hessian of the mean over the batches of `loss`, v a vector.

    By Pearlmutter's identity H v = d(g . v)/dw, a second backward pass through the gradient g: H is never formed. The
    model has to be `attention.eager`.

    Raises:
        UserError: as `mean_over_batches`.
    """

    def products(batch: Batch, weights: Sequence[nn.Parameter]) -> Iterable[Tensor]:
        gradients = _gradients(loss(context.model, batch), weights, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(gradients, vector.values(), strict=True)]).sum()
        return _gradients(along, weights)

    return _mean(context, products)


def _gradients(of: Tensor, weights: Sequence[nn.Parameter], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Derivatives by the weights; zero where a batch does not reach one, as experts that no token is sent to."""
    return torch.autograd.grad(of, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _mean(context: Context, values: Callable[[Batch, Sequence[nn.Parameter]], Iterable[Tensor]]) -> dict[str, Tensor]:
    """Mean over the batches of `values(batch, weights)`, a tensor for each eligible weight."""
    weights = context.weights
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    count = 0
    with context.evaluating():
        for batch in context.batches():
            for total, value in zip(totals.values(), values(batch, list(weights.values())), strict=True):
                total += value
            count += 1
    if not count:
        raise UserError(NO_CALIBRATION)
    for name, total in totals.items():
        if not bool(total.isfinite().all()):
            raise UserError(f"the gradient of {name} is not finite: the model has diverged; lower the learning rate")
        total /= count
    if not any(bool(total.any()) for total in totals.values()):
        raise UserError(
            "scores by gradients are zero for every weight, so that none can be told from another: the loss does not "
            "depend on the weights, or is zero; look at the baseline, and at the texts it was trained on"
        )
    return totals
