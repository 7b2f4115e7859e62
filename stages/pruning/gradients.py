"""Scores made of gradients on calibration batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stages.errors import UserError
from stages.pruning.criterion import Context


def mean_over_batches(context: Context, score: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Mean over the calibration batches of `score(weight, gradient)`, fp32, for every eligible weight.

    Runs in evaluation mode (no dropout), and leaves gradients and training mode of the model as they were.

    Raises:
        UserError: no calibration batch, or a gradient that is not finite.
    """
    weights = context.weights
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    training = context.model.training
    context.model.eval()
    count = 0
    for batch in context.batches():
        loss = context.model(**batch).loss
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            totals[name] += score(weight.detach(), gradient)
        count += 1
    context.model.train(training)
    if not count:
        raise UserError("no calibration examples: the training split is empty, or prune.calibration.samples is 0")
    for name, total in totals.items():
        if not bool(total.isfinite().all()):
            raise UserError(f"the gradient of {name} is not finite: the model has diverged; lower the learning rate")
        total /= count
    return totals
