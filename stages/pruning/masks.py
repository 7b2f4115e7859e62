"""Masks on a model: applying them, and proving that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.bitmasks import Masks
from stages.errors import UserError


def keep_all(weights: Mapping[str, Tensor]) -> Masks:
    """Masks that prune nothing."""
    masks = Masks()
    for name, weight in weights.items():
        masks.put(name, keep_whole(weight))
    return masks


def keep_whole(weight: Tensor) -> Tensor:
    """The mask that prunes nothing of a weight."""
    return torch.ones(weight.shape, dtype=torch.bool)


@torch.no_grad()
def apply(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to zero, in place. Filled, not multiplied: that would keep NaN and the sign of zero."""
    for name in masks:
        weights[name].masked_fill_(~masks[name].to(weights[name].device), 0.0)


def check_held(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Prove that every masked weight is zero.

    Raises:
        RuntimeError: one is not; a bug, since whoever trains has to hold the masks.
    """
    for name in masks:
        weight = weights[name].detach()
        if revived := int(weight[~masks[name].to(weight.device)].count_nonzero()):
            raise RuntimeError(f"{revived} masked weights of {name} are not zero; the model is not saved")


def check_fits(masks: Masks, weights: Mapping[str, nn.Parameter], origin: Path) -> None:
    """Check that masks are of exactly these weights.

    Raises:
        UserError: a name or shape differs.
    """
    have = masks.shapes
    want = {name: tuple(weight.shape) for name, weight in weights.items()}
    if have != want:
        name = next(n for n in (have | want) if have.get(n) != want.get(n))
        raise UserError(f"{origin} is not of this model: {name} is {have.get(name)} there, {want.get(name)} here")
