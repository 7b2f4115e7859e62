"""BLEU, chrF, ROUGE-L, slot error rate and exact match, with any number of references a segment.

Each metric gives per-segment sufficient statistics and a score from their sums, which is what resampling
needs (`significance`). BLEU and chrF statistics are sacrebleu's, and so is the corpus score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import BLEU, CHRF

from stages.evaluation.significance import Array

Systems = Sequence[Sequence[str]]
References = Sequence[Sequence[str]]


class Metric(Protocol):
    """A corpus metric that is a function of sums over segments."""

    name: str

    def statistics(self, systems: Systems, references: References) -> list[Array]:
        """Sufficient statistics [segments, statistics] of each system's outputs, one output a segment."""
        ...

    def score(self, sums: Array) -> Array:
        """Scores [...] from summed statistics [..., statistics]."""
        ...

    def signature(self, references: References) -> str:
        """How the score was computed, so that two scores are comparable or visibly not."""
        ...


def metrics(language: str, placeholder: str | None, references: References) -> list[Metric]:
    """The metrics for a language; slot error rate only where references carry placeholders."""
    found: list[Metric] = [Bleu(language), Chrf(), RougeL(language)]
    if placeholder and any(slots(text, placeholder) for many in references for text in many):
        found.append(SlotErrorRate(placeholder))
    return found


class _Sacrebleu:
    """Statistics by sacrebleu's own segment functions, which take a varying number of references."""

    name: str
    _metric: Any

    def statistics(self, systems: Systems, references: References) -> list[Array]:
        """See `Metric`. References are analysed once for all systems, and one segment's at a time."""
        metric = self._metric
        rows: list[list[list[int]]] = [[] for _ in systems]
        for *outputs, many in zip(*systems, references, strict=True):
            analysed = metric._extract_reference_info([metric._preprocess_segment(text) for text in many])
            for row, output in zip(rows, outputs, strict=True):
                row.append(metric._compute_segment_statistics(metric._preprocess_segment(output), analysed))
        return [np.asarray(row, dtype=np.float64) for row in rows]

    def signature(self, references: References) -> str:
        """Sacrebleu's signature."""
        counts = {len(many) for many in references}
        self._metric.num_refs = counts.pop() if len(counts) == 1 else -1
        return str(self._metric.get_signature())


class Bleu(_Sacrebleu):
    """Corpus BLEU of up to 4-grams with exponential smoothing (Papineni et al. 2002; Post 2018).

    Tokenised by mteval's 13a, Chinese by character. Statistics: output length, closest reference length, then
    matched and total n-grams of orders 1 to 4.
    """

    name = "bleu"

    def __init__(self, language: str) -> None:
        self._metric = BLEU(tokenize={"zh": "zh"}.get(language, "13a"), force=True)

    def score(self, sums: Array) -> Array:
        """See `Metric`; 0 to 100."""
        length, closest, matched, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
        with np.errstate(divide="ignore", invalid="ignore"):
            # Each further order without a match counts half as much as the one before it.
            unmatched = (matched == 0) & (total > 0)
            halved = 1 / 2.0 ** np.cumsum(unmatched, axis=-1)
            precision = np.where(unmatched, halved, matched) / total
            brevity = np.minimum(1, np.exp(1 - closest / length))
            score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
        return np.where((matched.sum(axis=-1) > 0) & (total > 0).all(axis=-1), score, 0.0)

    def length_ratio(self, sums: Array) -> Array:
        """Words of the outputs over words of the references closest to them in length."""
        return sums[..., 0] / np.maximum(sums[..., 1], 1)


class Chrf(_Sacrebleu):
    """Character n-gram F-score of orders 1 to 6, recall counting twice (Popović 2015).

    Statistics: for each order the n-grams of the output, of the best reference, and those in both.
    """

    name = "chrf"

    def __init__(self) -> None:
        self._metric = CHRF()

    def score(self, sums: Array) -> Array:
        """See `Metric`; 0 to 100."""
        output, reference, matched = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        counted = (output > 0) & (reference > 0)
        orders = np.maximum(counted.sum(axis=-1), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(counted, matched / output, 0).sum(axis=-1) / orders
            recall = np.where(counted, matched / reference, 0).sum(axis=-1) / orders
            score = 100 * 5 * precision * recall / (4 * precision + recall)
        return np.where(precision + recall > 0, score, 0.0)


class RougeL:
    """F1 of the longest common subsequence with the best reference, mean over segments (Lin 2004).

    Words are runs of letters and digits in lower case: of ASCII text the words of the `rouge-score` package without
    stemming, which cuts other words at every letter beyond a to z. In Chinese every character beside a run of a to z
    and digits is a word of its own.
    """

    name = "rougeL"
    _WORD: ClassVar[dict[str, str]] = {"en": r"[^\W_]+", "zh": r"[a-z0-9]+|[^\W_]"}
    _UNIT = 1e9  # F1 is kept in whole billionths, so that sums are exact

    def __init__(self, language: str) -> None:
        self._pattern = re.compile(self._WORD.get(language, self._WORD["en"]))

    def statistics(self, systems: Systems, references: References) -> list[Array]:
        """See `Metric`: F1 in billionths, and 1."""
        rows: list[list[tuple[float, int]]] = [[] for _ in systems]
        for *outputs, many in zip(*systems, references, strict=True):
            words = [self._words(text) for text in many]
            for row, output in zip(rows, outputs, strict=True):
                best = max(_lcs_f1(self._words(output), reference) for reference in words)
                row.append((round(best * self._UNIT), 1))
        return [np.asarray(row, dtype=np.float64) for row in rows]

    def score(self, sums: Array) -> Array:
        """See `Metric`; 0 to 100."""
        return 100 * sums[..., 0] / (self._UNIT * sums[..., 1])

    def signature(self, references: References) -> str:
        """The word pattern and how references are combined."""
        return f"f1|best reference|lowercase|words:{self._pattern.pattern}"

    def _words(self, text: str) -> list[str]:
        return self._pattern.findall(text.lower())


class SlotErrorRate:
    """Missing and extra slots over the slots of the closest reference (Wen et al. 2015).

    The closest reference is the one with the fewest missing and extra slots, the one with more slots of two
    that tie. 0 is perfect; above 1 there are more errors than slots.
    """

    name = "slot_error_rate"

    def __init__(self, placeholder: str) -> None:
        self._placeholder = placeholder

    def statistics(self, systems: Systems, references: References) -> list[Array]:
        """See `Metric`: errors, and slots of the closest reference."""
        rows: list[list[tuple[int, int]]] = [[] for _ in systems]
        for *outputs, many in zip(*systems, references, strict=True):
            wanted = [slots(text, self._placeholder) for text in many]
            for row, output in zip(rows, outputs, strict=True):
                given = slots(output, self._placeholder)
                errors, fewer = min((_slot_errors(given, reference), -reference.total()) for reference in wanted)
                row.append((errors, -fewer))
        return [np.asarray(row, dtype=np.float64) for row in rows]

    def score(self, sums: Array) -> Array:
        """See `Metric`; errors a slot. Without any slot every error counts as one."""
        return sums[..., 0] / np.maximum(sums[..., 1], 1)

    def signature(self, references: References) -> str:
        """What counts as a slot."""
        return f"closest reference|slots:{self._placeholder}"


def slots(text: str, placeholder: str) -> Counter[str]:
    """How often each placeholder occurs in a text."""
    return Counter(match.group() for match in re.finditer(placeholder, text) if match.group())


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Share of predictions equal to one of their references, 0 to 1."""
    return sum(text in many for text, many in zip(predictions, references, strict=True)) / len(predictions)


def _slot_errors(given: Counter[str], wanted: Counter[str]) -> int:
    return (given - wanted).total() + (wanted - given).total()


def _lcs_f1(output: list[str], reference: list[str]) -> float:
    if not output or not reference:
        return 0.0
    # F1 of precision lcs/output and recall lcs/reference.
    return 2 * LCSseq.similarity(output, reference) / (len(output) + len(reference))
