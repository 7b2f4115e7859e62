"""Exact and near duplicates."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from stages.text.normalise import comparable
from stages.text.parallel import OrderedMap

if TYPE_CHECKING:
    from datasketch import MinHash

PERMUTATIONS = 128
"""Hash functions of a MinHash signature."""
NGRAM = 3
"""Characters of a shingle: enough to tell words apart, and Chinese ones too."""
_SEED = 1
_SCHEME = "affine32"
# Of the errors of locality-sensitive hashing, a needless candidate costs a comparison and a missed one is lost.
_WEIGHT_OF_ERRORS = (0.1, 0.9)

Pair = tuple[str, str]
Numbered = tuple[list[int], list[Pair]]
"""Pairs after their numbers."""


def repeated(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Entries whose 128-bit digest an earlier entry has too.

    Args:
        high, low: halves of the digests, uint64, shape (rows,).

    Returns:
        Boolean mask, shape (rows,).
    """
    order = np.lexsort((low, high))  # stable: equal digests stay in row order
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    found = np.zeros(len(high), bool)
    found[order[1:][same]] = True
    return found


def shingles(text: str) -> set[str]:
    """Character n-grams of a text, without differences in case, width and white space."""
    text = comparable(text)
    return {text[at : at + NGRAM] for at in range(max(1, len(text) - NGRAM + 1))}


def jaccard(first: set[str], second: set[str]) -> float:
    """Shared share of two sets: |A and B| / |A or B|."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def similarity(first: Pair, second: Pair) -> float:
    """Jaccard similarity of the sources' or the targets' shingles, whichever is less."""
    return min(jaccard(shingles(one), shingles(other)) for one, other in zip(first, second, strict=True))


def near_duplicates(
    batches: Iterable[Numbered], pair_at: Callable[[int], Pair], threshold: float, spread: OrderedMap
) -> list[int]:
    """Numbers of the pairs almost equal to an earlier pair that is not itself one of them.

    Candidates come from locality-sensitive hashing of MinHash signatures (Broder, 1997; Indyk and Motwani, 1998);
    each is then compared exactly, so nothing below the threshold is ever found. The hashing misses up to a fifth
    of the pairs right at the threshold, and one in twenty that are 0.05 above it.

    Args:
        batches: pairs with ascending numbers.
        pair_at: the pair of a number already seen.
        threshold: least `similarity`, in (0, 1].
        spread: shares the computation of signatures out.
    """
    from datasketch import MinHashLSH

    # Bands of the index are fitted to the threshold, and there have to be two or more of them.
    index = MinHashLSH(min(threshold, 0.95), PERMUTATIONS, _WEIGHT_OF_ERRORS)
    signature = _no_shingles()  # of one pair after the other: the index keeps only its bands
    found = []
    for numbers, pairs, hashes in spread(_sign, batches):
        for number, pair, values in zip(numbers, pairs, hashes, strict=True):
            signature.hashvalues = values
            if any(similarity(pair, pair_at(other)) >= threshold for other in index.query(signature)):
                found.append(number)
            else:
                index.insert(number, signature, check_duplication=False)
    return found


def _no_shingles() -> MinHash:
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, _SEED, hashfunc=int, scheme=_SCHEME)  # what it is given are hashes


class _Hashes(dict[str, int]):
    """CRC-32 of each shingle of one side, worked out once: texts share most of theirs."""

    def __init__(self, side: str) -> None:
        self._side = side

    def __missing__(self, shingle: str) -> int:
        value = self[shingle] = zlib.crc32((self._side + shingle).encode())
        return value


def _sign(batch: Numbered) -> tuple[list[int], list[Pair], list[np.ndarray]]:
    numbers, pairs = batch
    signature = _no_shingles()
    sides = _Hashes("s"), _Hashes("t")
    hashes = []
    for pair in pairs:
        signature.clear()
        # Two pairs share at least the least share of either side, so one signature can stand for both.
        both = zip(sides, pair, strict=True)
        signature.update_batch(hashed[shingle] for hashed, text in both for shingle in shingles(text))
        hashes.append(signature.hashvalues)
    return numbers, pairs, hashes
