"""Bootstrap intervals and paired bootstrap tests from per-segment sufficient statistics.

A metric such as BLEU is a function of sums over segments, so a resample of the test set is a matrix product
with how often each segment was drawn; no text is scored again. Equal seeds draw equal resamples, so the
resampled scores of two systems are paired (Koehn 2004, "Statistical significance tests for machine
translation evaluation").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""From sums of statistics [..., statistics] to scores [...]."""

DRAWS_AT_A_TIME = 4_000_000


def bootstrap(statistics: Array, score: Score, *, samples: int, seed: int) -> Array:
    """Scores of resamples of the segments, drawn with replacement.

    The statistics should be whole numbers: their sums are then exact in any order of adding, so the result
    does not depend on how many threads the linear algebra library uses.

    Args:
        statistics: [segments, statistics].
        score: the metric as a function of summed statistics.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        [samples].
    """
    segments = len(statistics)
    random = np.random.default_rng(seed)
    step = max(1, DRAWS_AT_A_TIME // segments)
    sums = np.empty((samples, statistics.shape[1]))
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = random.integers(0, segments, size=(rows, segments)) + np.arange(rows)[:, None] * segments
        counts = np.bincount(drawn.ravel(), minlength=rows * segments).reshape(rows, segments)
        sums[start : start + rows] = counts.astype(np.float64) @ statistics
    return score(sums)


def interval(scores: Array, confidence: float) -> tuple[float, float]:
    """Percentile interval of bootstrap scores [samples] (Efron 1979)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return float(low), float(high)


def p_value(differences: Array) -> float:
    """Two-sided p-value that paired resampled differences [samples] lie on one side of zero by chance.

    Twice the share of resamples on the rarer side, the observed sample counted as one of them so that the
    value is never zero (Davison and Hinkley 1997, section 4.2). It agrees with the percentile interval: below
    0.05 just where the 95 % interval of the difference leaves out zero.
    """
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))
