"""Counting parameters before and after, per layer and in all."""

from __future__ import annotations

import csv
from pathlib import Path

from torch import nn

from stages.files import replacing
from stages.models import anatomy


def counts(model: nn.Module, described: anatomy.Anatomy) -> dict[str, float]:
    """Flat metrics: parameters of the model, those eligible, those not zero, and the sparsity over the eligible."""
    kept = sum(anatomy.count_nonzero(weight) for weight in described.weights.values())
    return {
        "parameters": described.parameters,
        "eligible_parameters": described.eligible,
        "nonzero_parameters": anatomy.nonzero(model),
        "pruned_parameters": described.eligible - kept,
        "sparsity": (described.eligible - kept) / described.eligible,
    }


def write_layers(path: Path, described: anatomy.Anatomy) -> None:
    """Write a row per eligible matrix: its weights, how many are not zero, and its sparsity."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "parameters", "nonzero", "sparsity"])
        for name, weight in described.weights.items():
            kept = anatomy.count_nonzero(weight)
            writer.writerow([name, weight.numel(), kept, f"{1 - kept / weight.numel():.6f}"])
