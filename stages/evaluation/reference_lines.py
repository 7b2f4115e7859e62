"""The two lines that a generator's scores are read against: a floor, and what people reach.

The floor copies: for each input, the first utterance of the most similar training input. The human line takes
turns in leaving one reference of an input out and scoring it against the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz import fuzz, process

from stages.evaluation.inputs import Inputs
from stages.evaluation.quality import Metric
from stages.evaluation.significance import Array

BLOCK = 10_000_000
"""Similarities that are in memory at a time."""
LEFT_OUT = 10
"""References of one input that take a turn: thousands of "goodbye" would add time and tell no more."""


def copy_nearest(train: Inputs, sources: Sequence[str]) -> list[str]:
    """The first utterance of the training input most similar to each source.

    Similarity is the share of characters in a longest common subsequence (rapidfuzz `ratio`), which needs no
    words and so suits every language. Of inputs that tie, the first in the training split is taken.
    """
    step = max(1, BLOCK // len(train.sources))
    copies: list[str] = []
    for start in range(0, len(sources), step):
        similarity = process.cdist(sources[start : start + step], train.sources, scorer=fuzz.ratio)
        copies += [train.references[nearest][0] for nearest in np.argmax(similarity, axis=1)]
    return copies


def human(inputs: Inputs, metrics: Sequence[Metric]) -> dict[str, float]:
    """Score references against the other references of their input.

    Only inputs with two or more references count. An input's statistics are the mean over the references left
    out (at most `LEFT_OUT` of them, evenly spaced), so each input weighs as much as it does for a generator,
    which writes one output an input. A generator has one reference more to match than a person here.

    Returns:
        Score by metric name; empty where no input has two references.
    """
    shared = [many for many in inputs.references if len(many) > 1]
    if not shared:
        return {}
    sums: dict[str, Array] = {}
    for many in shared:
        turns = [i * len(many) // min(len(many), LEFT_OUT) for i in range(min(len(many), LEFT_OUT))]
        others = [[*many[:i], *many[i + 1 :]] for i in turns]
        for metric in metrics:
            [statistics] = metric.statistics([[many[i] for i in turns]], others)
            sums[metric.name] = sums.get(metric.name, 0) + statistics.mean(axis=0)
    return {metric.name: float(metric.score(sums[metric.name])) for metric in metrics}
