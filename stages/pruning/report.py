"""Counting parameters before and after, per layer and in all."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from stages.files import replacing
from stages.models import anatomy


def counts(model: nn.Module, described: anatomy.Anatomy, dense: anatomy.Anatomy | None = None) -> dict[str, float]:
    """Flat metrics: parameters of the model, those eligible, those not zero, and the sparsity over the eligible.

    Args:
        model: whose parameters are counted.
        described: its eligible matrices.
        dense: those of the model that it was before parts of it were removed, which the sparsity is over then.
    """
    eligible = (dense or described).eligible
    kept = sum(anatomy.count_nonzero(weight) for weight in described.weights.values())
    return {
        "parameters": described.parameters,
        "eligible_parameters": eligible,
        "nonzero_parameters": anatomy.nonzero(model),
        "pruned_parameters": eligible - kept,
        "sparsity": (eligible - kept) / eligible,
    }


def write_layers(
    path: Path, dense: anatomy.Anatomy, left: anatomy.Anatomy | None = None, names: Mapping[str, str] | None = None
) -> None:
    """Write a row per eligible matrix: its weights, how many are not zero, and its sparsity.

    Args:
        path: of the CSV file.
        dense: the matrices.
        left: what is left of them, where parts have been removed.
        names: of what is left: by the name of the dense matrix.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "parameters", "nonzero", "sparsity"])
        for name, weight in dense.weights.items():
            now = weight if left is None else left.weights.get((names or {}).get(name, ""))
            kept = 0 if now is None else anatomy.count_nonzero(now)
            writer.writerow([name, weight.numel(), kept, f"{1 - kept / weight.numel():.6f}"])
