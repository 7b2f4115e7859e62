"""Means with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and half the width of Student's t interval of it; None of one value, which has none."""

    mean: float
    half_width: float | None
    count: int
    """Of values, such as training seeds."""

    def show(self, digits: int = 1, *, signed: bool = False, scale: float = 1.0, unit: str = "") -> str:
        """As in `48.4 ± 1.2 (3)`, the number of values in brackets."""
        sign = "+" if signed else ""
        text = f"{self.mean * scale:{sign}.{digits}f}{unit}".replace("-", "\N{MINUS SIGN}")
        if self.half_width is not None:
            text += f" ± {self.half_width * scale:.{digits}f}"
        return f"{text} ({self.count})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of values, half_width = t(n - 1) * s / sqrt(n); None of none.

    Of differences to a control of the same seed, or on the same text, this is the paired t interval.
    """
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, 1)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(n), n)
