"""Fluency without references: perplexity under an n-gram model, repetition, distinct-n."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Tokens = list[str]

UNKNOWN, START, END = 0, 1, 2


def tokenizer(language: str, placeholder: str | None) -> Callable[[str], Tokens]:
    """A function from text to words and punctuation marks; in Chinese, to characters.

    A placeholder is one token, and so is a run of Latin letters and digits in Chinese.
    """
    word = r"[A-Za-z0-9]+|\S" if language == "zh" else r"\w+(?:['’]\w+)?|[^\w\s]"
    pattern = re.compile(f"{placeholder}|{word}" if placeholder else word)
    return lambda text: [match.group() for match in pattern.finditer(text) if match.group()]


@dataclass(frozen=True)
class _Order:
    """N-grams of one order, looked up by (context, token)."""

    contexts: Ids
    """Sorted keys of contexts: leftmost token and id of the context one shorter; order 1 has one."""
    grams: Ids
    """Sorted keys of n-grams: context id and last token."""
    counts: NDArray[np.float64]
    """Of each n-gram: occurrences, or in lower orders the number of distinct tokens before it."""
    totals: NDArray[np.float64]
    """Of each context: sum of its counts."""
    types: Ids
    """Of each context: number of distinct tokens after it."""
    discount: float


class NGramModel:
    """Interpolated Kneser-Ney n-gram model with one discount an order (Kneser and Ney 1995).

    The lowest order is interpolated with the uniform distribution over the vocabulary, the end of the text
    and one unknown word, so that every text has a probability. N-grams at the start of a text keep their
    occurrences as counts, since nothing can stand before them (Heafield et al. 2013, section 3).
    """

    def __init__(self, texts: Iterable[Tokens], order: int) -> None:
        """Count n-grams.

        Args:
            texts: tokenised training texts.
            order: n, at least 2.
        """
        texts = list(texts)
        self._order = order
        words = dict.fromkeys(token for text in texts for token in text)
        self._vocabulary = {word: i for i, word in enumerate(words, start=END + 1)}
        self._size = len(self._vocabulary) + END + 1
        self._orders = self._count(self._windows(texts))

    def log_probabilities(self, texts: Iterable[Tokens]) -> NDArray[np.float64]:
        """Natural log-probability of every token and end of text, one after the other."""
        windows = self._windows(texts)
        token = windows[:, -1]
        context = np.zeros(len(windows), dtype=np.int64)
        # Every token but START can come next.
        probability = np.full(len(windows), 1 / (self._size - 1))
        for n, order in enumerate(self._orders, start=1):
            if n > 1:
                key = windows[:, -n] * self._orders[n - 2].totals.size + context
                # A context that is new stays new with more words before it.
                context = np.where(context >= 0, _find(order.contexts, key), -1)
            known = context >= 0
            at = context[known]
            gram = _find(order.grams, at * self._size + token[known])
            count = np.where(gram >= 0, order.counts[gram], 0)
            backed_off = order.discount * order.types[at] * probability[known]
            probability[known] = (np.maximum(count - order.discount, 0) + backed_off) / order.totals[at]
        return np.log(probability)

    def perplexity(self, texts: Iterable[Tokens]) -> float:
        """Of tokens and ends of text; lower is closer to the training texts."""
        return math.exp(-self.log_probabilities(texts).mean())

    def _windows(self, texts: Iterable[Tokens]) -> Ids:
        """Token ids [predicted tokens, order]: each token and end of text after its context."""
        pad = [START] * (self._order - 1)
        ids: list[int] = []
        for text in texts:
            ids += pad
            ids += [self._vocabulary.get(token, UNKNOWN) for token in text]
            ids.append(END)
        windows = np.lib.stride_tricks.sliding_window_view(np.array(ids, dtype=np.int64), self._order)
        return windows[windows[:, -1] != START]

    def _count(self, windows: Ids) -> list[_Order]:
        token = windows[:, -1]
        context = np.zeros(len(windows), dtype=np.int64)
        contexts = np.zeros(1, dtype=np.int64)
        levels = []
        for n in range(1, self._order + 1):
            if n > 1:
                contexts, context = np.unique(windows[:, -n] * contexts.size + context, return_inverse=True)
            grams, first, gram, occurrences = np.unique(
                context * self._size + token, return_index=True, return_inverse=True, return_counts=True
            )
            levels.append((contexts, grams, first, gram, occurrences))
        orders = []
        for n, (contexts, grams, first, gram, occurrences) in enumerate(levels, start=1):
            counts = occurrences.astype(np.float64)
            if n < self._order:
                longer_first = levels[n][2]
                continuations = np.bincount(gram[longer_first], minlength=grams.size)
                opening = windows[first, -n] == START
                counts[~opening] = continuations[~opening]
            of_gram = grams // self._size
            totals = np.bincount(of_gram, weights=counts, minlength=contexts.size).astype(np.float64)
            types = np.bincount(of_gram, minlength=contexts.size)
            orders.append(_Order(contexts, grams, counts, totals, types, _discount(counts)))
        return orders


def repetition(texts: Sequence[Tokens]) -> float:
    """Share of an output's bigrams that occurred in it before, mean over outputs, 0 to 1.

    Seq-rep-n of Welleck et al. 2020 with n = 2, since utterances are short. An output of fewer than two
    tokens repeats nothing.
    """
    shares = []
    for text in texts:
        bigrams = list(pairwise(text))
        shares.append(1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0)
    return sum(shares) / len(shares)


def distinct(texts: Sequence[Tokens], n: int) -> float:
    """Distinct n-grams over all n-grams of all outputs, 0 to 1 (Li et al. 2016); 0 where there are none."""
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _discount(counts: NDArray[np.float64]) -> float:
    """n1 / (n1 + 2 n2) of the numbers of ones and twos (Ney et al. 1994); 1/2 where either has none."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5


def _find(sorted_keys: Ids, keys: Ids) -> Ids:
    """Index of each key in `sorted_keys`, -1 where it is missing."""
    index = np.minimum(np.searchsorted(sorted_keys, keys), sorted_keys.size - 1)
    return np.where(sorted_keys[index] == keys, index, -1)
