"""A generator on several runtimes: the same texts, in turns, in one process.

    python -m benchmarks.runtimes dense exported/onnx exported/int8

In:  keys of levels, folders of checkpoints or exports; the first is what the others are compared with. The test split
     that the pipeline has cleaned.
Out: a table. Greedy latency of a batch in milliseconds, median and quartiles, texts as long as the generator makes
     them; how many times faster than the first, by medians; the share of all test inputs with the same output as the
     first; BLEU over them, and its difference.

The generators take turns batch by batch, so that whatever else the machine does slows all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import layout, params
from stages.errors import UserError, command

if TYPE_CHECKING:
    from stages.models.checkpoint import Generator

WARM_UP = 3
"""Batches generated before the clock starts."""
GREEDY = {"num_beams": 1, "do_sample": False}
COLUMNS = ("model", "ms (quartiles)", "times faster", "same output", "BLEU", "difference")


@dataclass(frozen=True)
class Row:
    """What was measured of one generator."""

    name: str
    latency_ms: tuple[float, float, float]
    """First quartile, median, third quartile."""
    outputs: list[str]
    bleu: float


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description="Compare runtimes.")
    parser.add_argument("models", nargs="+", help="baseline, dense, magnitude-0.5, …, a checkpoint folder or an export")
    parser.add_argument("--batches", type=int, default=60, help="batches that are timed (default: 60)")
    parser.add_argument("--batch-size", type=int, default=1, help="texts of a batch (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every runtime (default: 1)")
    args = parser.parse_args(arguments)
    if min(args.batches, args.batch_size, args.threads) < 1:
        raise UserError("--batches, --batch-size and --threads must be at least 1")
    language = params.load("data").data.language

    import torch
    from transformers.utils import logging

    from stages.evaluation.inputs import read_inputs
    from stages.runtimes import folder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    inputs = read_inputs(layout.DATA / "test.parquet")
    folders = [Path(name) if Path(name).is_dir() else layout.model_folder(name) for name in args.models]
    generators = [folder.load(path) for path in folders]
    latency = latencies(generators, inputs.sources, batches=args.batches, batch_size=args.batch_size)
    rows = [
        Row(name, of, *scored(generator, inputs.sources, inputs.references, language))
        for name, of, generator in zip(args.models, latency, generators, strict=True)
    ]
    print(
        f"{len(inputs.sources)} test inputs; {args.batches} batches of {args.batch_size} timed; threads: {args.threads}"
    )
    print(table(rows))


def latencies(
    generators: Sequence[Generator], texts: Sequence[str], *, batches: int, batch_size: int
) -> list[tuple[float, float, float]]:
    """Quartiles of the milliseconds a batch takes, of each generator; they take turns, each going first as often."""
    import numpy as np

    from stages.evaluation.timing import seconds, spread

    chosen = spread(texts, batches * batch_size)
    taken = np.empty((len(generators), batches))
    for number in (*range(WARM_UP), *range(batches)):
        batch = chosen[number % batches :: batches]  # texts of a batch from all over, as they come
        for turn in range(len(generators)):
            which = (number + turn) % len(generators)
            taken[which, number % batches] = seconds(generators[which], batch, GREEDY) * 1000
    return [tuple(np.quantile(row, [0.25, 0.5, 0.75]).tolist()) for row in taken]


def scored(
    generator: Generator, sources: Sequence[str], references: Sequence[Sequence[str]], language: str
) -> tuple[list[str], float]:
    """Greedy outputs of all sources, and their corpus BLEU."""
    from stages.evaluation.generation import generate
    from stages.evaluation.quality import Bleu

    outputs = generate(generator, sources, batch_size=32, seed=0, options=GREEDY)
    bleu = Bleu(language)
    return outputs, float(bleu.score(bleu.statistics([outputs], references)[0].sum(axis=0)))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, each beside the first."""
    first = rows[0]
    lines = [COLUMNS, ("---", *["--:"] * (len(COLUMNS) - 1))]
    for row in rows:
        low, middle, high = row.latency_ms
        same = sum(a == b for a, b in zip(row.outputs, first.outputs, strict=True)) / len(first.outputs)
        lines.append(
            (
                row.name,
                f"{middle:.1f} ({low:.1f}–{high:.1f})",
                f"{first.latency_ms[1] / middle:.1f}",
                f"{same:.1%}",
                f"{row.bleu:.2f}",
                f"{row.bleu - first.bleu:+.2f}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
