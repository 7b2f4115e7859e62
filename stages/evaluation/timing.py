"""Latency and throughput of `generate`, of several generators side by side in one process.

Timings differ from run to run and machine to machine, so nothing that must be bit-exact holds them. Generators take
turns batch by batch, every round in another order and over all rounds at the same place on average: whatever else the
machine does slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.evaluation.generation import generate_batch
from stages.models.checkpoint import Generator
from stages.params import Benchmark

QUARTILES = {"p25": 0.25, "p50": 0.5, "p75": 0.75}


@dataclass(frozen=True)
class Setting:
    """How one batch is generated.

    Attributes:
        batch_size: texts at a time.
        num_beams: 1 for greedy search.
        tokens: that every output has, so that a level is not quick because it says little; None: as many as the
            generator makes of it.
        rounds: batches that are timed.
    """

    batch_size: int
    num_beams: int
    tokens: int | None
    rounds: int

    @property
    def name(self) -> str:
        """How its figures begin."""
        if self.tokens is None:
            return "latency_ms"
        beams = f"_beams{self.num_beams}" if self.num_beams > 1 else ""
        return f"batch{self.batch_size}{beams}_tokens_per_second"

    def options(self, generators: Sequence[Generator]) -> dict[str, Any]:
        """Arguments of `model.generate` that every one of some generators can meet."""
        options: dict[str, Any] = {"num_beams": self.num_beams, "do_sample": False}
        if self.tokens is not None:
            length = min(self.tokens, *(generator.max_target_tokens for generator in generators))
            options |= {"min_new_tokens": length, "max_new_tokens": length}
        return options


def settings(asked: Benchmark) -> list[Setting]:
    """What is measured: the latency of one text by greedy search, as long as it comes, then all throughputs."""
    latency = Setting(1, 1, None, asked.rounds)
    pairs = [(beams, size) for beams in asked.num_beams for size in asked.batch_sizes]
    return [latency, *(Setting(size, beams, asked.tokens, asked.throughput_rounds) for beams, size in pairs)]


def timings(
    generators: Sequence[Generator], texts: Sequence[str], measured: Sequence[Setting]
) -> list[dict[str, float]]:
    """Time generators, which take turns, after one round that is not counted.

    Args:
        generators: at least one; the first is what the others are compared with.
        texts: at least one input; each round takes others, evenly spaced.
        measured: what each generator does, and how often.

    Returns:
        For each generator and setting: quartiles of `latency_ms` or of tokens per second (`NAME_p25`, `NAME_p50`,
        `NAME_p75`), and as `speedup` or `NAME_speedup` how many times faster than the first it is, by medians.
    """
    taken = [np.empty((len(generators), setting.rounds)) for setting in measured]
    options = [setting.options(generators) for setting in measured]
    turns = [orders(len(generators), setting.rounds) for setting in measured]
    for number in range(-1, max(setting.rounds for setting in measured)):
        for i, setting in enumerate(measured):
            if number >= setting.rounds:
                continue
            batch = spread(texts, setting.batch_size * setting.rounds)[max(number, 0) :: setting.rounds]
            for which in turns[i][max(number, 0)]:
                elapsed = seconds(generators[which], batch, options[i])
                if number >= 0:
                    taken[i][which, number] = elapsed
    return [_figures(measured, options, taken, which) for which in range(len(generators))]


def orders(count: int, rounds: int) -> list[list[int]]:
    """Who goes when in each round; drawn, but the same at every call.

    Args:
        count: generators.
        rounds: how often each has its turn.

    Returns:
        For each round a permutation of the generators. Over two rounds or more, the sums of their places differ by
        at most 1, so that none is earlier than another on average.
    """
    draw = np.random.default_rng(0)
    found: list[list[int]] = []
    while len(found) < rounds:
        order = draw.permutation(count)
        if (left := rounds - len(found)) == 3:
            # No three orders in pairs: the second begins at the middle of the first, the third makes up for both.
            second = (np.arange(count) + count // 2) % count
            third = np.argsort(np.argsort(-(np.arange(count) + second), kind="stable"))
            found += [order[np.argsort(places)].tolist() for places in (np.arange(count), second, third)]
        else:
            found += [order.tolist(), order[::-1].tolist()][:left]
    return found


def _figures(
    measured: Sequence[Setting], options: Sequence[dict[str, Any]], taken: Sequence[np.ndarray], which: int
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for i, setting in enumerate(measured):
        own = taken[i][which]
        if setting.tokens is None:
            values, prefix = own * 1000, "speedup"
        else:
            tokens = options[i]["max_new_tokens"] * setting.batch_size
            values, prefix = tokens / own, f"{setting.name.removesuffix('_tokens_per_second')}_speedup"
        for name, share in QUARTILES.items():
            figures[f"{setting.name}_{name}"] = float(np.quantile(values, share))
        figures[prefix] = float(np.median(taken[i][0]) / np.median(own))
    return figures


def seconds(generator: Generator, texts: Sequence[str], options: dict[str, Any]) -> float:
    """Seconds to generate one batch, from texts to texts."""
    start = time.perf_counter()
    generate_batch(generator, texts, options)
    return time.perf_counter() - start


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` texts evenly spaced over all of them, over and over if there are fewer."""
    return [texts[i * max(len(texts), count) // count % len(texts)] for i in range(count)]
