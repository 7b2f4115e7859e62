"""The figures of one generator's predictions, as its metrics file has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.evaluation.fluency import NGramModel, distinct, repetition, tokenizer
from stages.evaluation.inputs import read_targets
from stages.evaluation.quality import Bleu, Metric, References, exact_match
from stages.evaluation.significance import bootstrap, interval, p_value
from stages.params import Data, Evaluate

FLUENCY_TEXTS = 500_000
"""Training targets the n-gram model counts at most: more move it little, and memory stays bounded."""


def quality(
    metrics: Sequence[Metric],
    predictions: Sequence[str],
    references: References,
    *,
    control: Sequence[str] | None,
    evaluate: Evaluate,
    seed: int,
) -> dict[str, float]:
    """Scores with bootstrap intervals, and the paired difference from a control.

    Args:
        metrics: what to score by.
        predictions: an output for each input.
        references: of each input.
        control: outputs of the control for the same inputs; None for the control itself.
        evaluate: `bootstrap_samples` and `confidence`.
        seed: of the resamples.

    Returns:
        For each metric `NAME`, `NAME_low`, `NAME_high` and, with a control, `NAME_delta` (predictions less
        control), `NAME_delta_low`, `NAME_delta_high`, `NAME_p`; then `length_ratio` and `exact_match`.
    """
    figures: dict[str, float] = {}
    samples = evaluate.bootstrap_samples
    for metric in metrics:
        name = metric.name
        systems = [predictions] if control is None else [predictions, control]
        statistics = metric.statistics(systems, references)
        scores = [float(metric.score(system.sum(axis=0))) for system in statistics]
        resampled = [bootstrap(system, metric.score, samples=samples, seed=seed) for system in statistics]
        figures[name] = scores[0]
        figures[f"{name}_low"], figures[f"{name}_high"] = interval(resampled[0], evaluate.confidence)
        if control is not None:
            differences = resampled[0] - resampled[1]
            figures[f"{name}_delta"] = scores[0] - scores[1]
            low, high = interval(differences, evaluate.confidence)
            figures |= {
                f"{name}_delta_low": low,
                f"{name}_delta_high": high,
                f"{name}_p": p_value(differences),
            }
        if isinstance(metric, Bleu):
            figures["length_ratio"] = float(metric.length_ratio(statistics[0].sum(axis=0)))
    figures["exact_match"] = exact_match(predictions, references)
    return figures


def same_share(outputs: Sequence[str], others: Sequence[str]) -> float:
    """Share of the inputs for which two generators write the same, letter by letter."""
    return sum(map(str.__eq__, outputs, others)) / len(outputs)


def scores(metrics: Sequence[Metric], predictions: Sequence[str], references: References) -> dict[str, float]:
    """Corpus scores alone, by metric name."""
    return {
        metric.name: float(metric.score(metric.statistics([predictions], references)[0].sum(axis=0)))
        for metric in metrics
    }


def fluency(predictions: Sequence[str], train: Path, *, data: Data, order: int) -> dict[str, float]:
    """How the outputs read, without looking at references.

    Args:
        predictions: outputs.
        train: training split.
        data: `language` and `placeholder`, which say what a token is.
        order: n of the model.

    Returns:
        `fluency_perplexity` under an n-gram model of the training targets, `repetition`, `distinct_1` and
        `distinct_2`.
    """
    tokens = tokenizer(data.language, data.placeholder)
    model = NGramModel([tokens(text) for text in read_targets(train, FLUENCY_TEXTS)], order)
    outputs = [tokens(text) for text in predictions]
    return {
        "fluency_perplexity": model.perplexity(outputs),
        "repetition": repetition(outputs),
        "distinct_1": distinct(outputs, 1),
        "distinct_2": distinct(outputs, 2),
    }


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures to six decimals: finer than any of them is known, and easier to read and compare."""
    return {name: value if isinstance(value, int) else round(value, 6) for name, value in figures.items()}
