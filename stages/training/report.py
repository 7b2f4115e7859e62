"""Loss curves as CSV, for DVC plots and MLflow."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from stages.files import replacing

COLUMNS = ("step", "epoch", "loss", "validation_loss", "learning_rate", "sparsity")


def write_curve(path: Path, curve: Sequence[dict[str, float]]) -> None:
    """Write the points of `Outcome.curve`; a cell is empty where nothing was measured."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.7g}" for name, value in point.items()} for point in curve)
