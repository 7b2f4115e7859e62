"""Masks: choosing exactly k weights, applying, checking, and storing one bit a weight.

A mask is a bool tensor of the weight's shape, True where the weight is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.errors import UserError
from stages.files import replacing

Masks = dict[str, Tensor]
MASKS_FILE = "masks.safetensors"


def select(importance: Mapping[str, Tensor], sparsity: float, scope: Literal["global", "layer"]) -> Masks:
    """Keep all but the round(sparsity*n) least important weights.

    The count is exact, over all weights (`global`) or within each matrix (`layer`). Of equal scores those
    first in model order go first, so the result is the same for any device and thread count.

    Args:
        importance: score of every eligible weight; fp32, none NaN.
        sparsity: share of the n eligible weights to prune, in [0, 1).
        scope: whether matrices compete with each other.

    Raises:
        UserError: a score is NaN.
    """
    if scope == "layer":
        return {name: _keep(score.flatten(), sparsity, name).view_as(score) for name, score in importance.items()}
    flat = torch.cat([score.flatten() for score in importance.values()])
    kept = _keep(flat, sparsity, "the model").split([score.numel() for score in importance.values()])
    return {name: part.view_as(score) for (name, score), part in zip(importance.items(), kept, strict=True)}


def _keep(scores: Tensor, sparsity: float, name: str) -> Tensor:
    if bool(scores.isnan().any()):
        raise UserError(f"importance scores of {name} are not numbers: the model has diverged")
    count = round(sparsity * scores.numel())
    keep = torch.ones_like(scores, dtype=torch.bool)
    if count == 0:
        return keep
    threshold = scores.kthvalue(count).values
    keep[scores < threshold] = False
    ties = (scores == threshold).nonzero().flatten()
    keep[ties[: count - int((~keep).sum())]] = False
    return keep


def keep_all(weights: Mapping[str, Tensor]) -> Masks:
    """Masks that prune nothing."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


@torch.no_grad()
def apply(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to zero, in place. Filled, not multiplied: that would keep NaN and the sign of zero."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


def check_held(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Prove that every masked weight is zero.

    Raises:
        RuntimeError: one is not; a bug, since whoever trains has to hold the masks.
    """
    for name, mask in masks.items():
        if revived := int(weights[name].detach()[~mask].count_nonzero()):
            raise RuntimeError(f"{revived} masked weights of {name} are not zero; the model is not saved")


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Share of masked weights."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / total


def save(masks: Mapping[str, Tensor], path: Path) -> None:
    """Write masks, one bit a weight, rows of 8 packed most significant bit first; shapes in the metadata."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    with replacing(path) as partial:
        save_file(packed, partial, metadata={"shapes": shapes})


def load(path: Path) -> Masks:
    """Read masks that `save` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = json.loads(file.metadata()["shapes"])
            return {name: _unpack(file.get_tensor(name), shape) for name, shape in shapes.items()}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
    except (SafetensorError, TypeError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc checkout --force {path.parent}`") from None


def check_fits(masks: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter], origin: Path) -> None:
    """Check that masks are of exactly these weights.

    Raises:
        UserError: a name or shape differs.
    """
    have = {name: tuple(mask.shape) for name, mask in masks.items()}
    want = {name: tuple(weight.shape) for name, weight in weights.items()}
    if have != want:
        name = next(n for n in (have | want) if have.get(n) != want.get(n))
        raise UserError(f"{origin} is not of this model: {name} is {have.get(name)} there, {want.get(name)} here")


def _unpack(packed: Tensor, shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    if packed.numel() != (count + 7) // 8:
        raise ValueError("a mask has the wrong length")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count).astype(bool)).reshape(shape)
