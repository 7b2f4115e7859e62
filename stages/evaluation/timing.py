"""Latency and throughput of `generate`, measured side by side with the baseline.

Timings differ from run to run and machine to machine, so nothing that must be bit-exact holds them. A level
and the baseline take turns text by text: whatever else the machine does slows both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.evaluation.generation import generate_batch
from stages.models.checkpoint import Generator

WARM_UP = 3
"""Texts generated before the clock starts."""
LENGTH = 16
"""Tokens an output must have where speeds are compared, so that a level is not quick because it says little."""


def timings(
    level: Generator,
    baseline: Generator,
    texts: Sequence[str],
    *,
    count: int,
    batch_size: int,
    options: dict[str, Any],
) -> dict[str, float]:
    """Time a level and the baseline.

    Args:
        level: the generator in question.
        baseline: what it is compared with.
        texts: at least one input.
        count: texts generated one at a time; `texts` are taken evenly spaced, and again if they are fewer.
        batch_size: of throughput.
        options: arguments of `model.generate`.

    Returns:
        `latency_ms_p50` and `latency_ms_p90` of one text, as long as the level makes it; `latency_ratio`, the
        median time of exactly `LENGTH` tokens, level over baseline; `tokens_per_second` of one batch of
        `LENGTH` tokens a text.
    """
    chosen = spread(texts, count)
    length = min(LENGTH, level.max_target_tokens, baseline.max_target_tokens)
    exact = options | {"min_new_tokens": length, "max_new_tokens": length}
    for text in chosen[:WARM_UP]:
        for generator in (level, baseline):
            generate_batch(generator, [text], exact)
    free = [seconds(level, [text], options) for text in chosen]
    taken = np.empty((count, 2))
    for i, text in enumerate(chosen):
        # Turns swap so that neither always runs on the caches the other has left.
        for which in (i % 2, 1 - i % 2):
            taken[i, which] = seconds((level, baseline)[which], [text], exact)
    p50, p90 = np.quantile(free, [0.5, 0.9]) * 1000
    batch = spread(texts, batch_size)
    return {
        "latency_ms_p50": float(p50),
        "latency_ms_p90": float(p90),
        "latency_ratio": float(np.median(taken[:, 0]) / np.median(taken[:, 1])),
        "tokens_per_second": length * batch_size / seconds(level, batch, exact),
    }


def seconds(generator: Generator, texts: Sequence[str], options: dict[str, Any]) -> float:
    """Seconds to generate one batch, from texts to texts."""
    start = time.perf_counter()
    generate_batch(generator, texts, options)
    return time.perf_counter() - start


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` texts evenly spaced over all of them, over and over if there are fewer."""
    return [texts[i * max(len(texts), count) // count % len(texts)] for i in range(count)]
