"""Exact and near duplicates against brute force and cases worked out by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.cleaner import pair_digest
from stages.text.deduplicate import jaccard, near_duplicates, repeated, shingles, similarity
from stages.text.parallel import ordered_map


def find(pairs, threshold, workers=1, batch=2):
    numbers = list(range(len(pairs)))
    batches = [(numbers[at : at + batch], pairs[at : at + batch]) for at in range(0, len(pairs), batch)]
    return near_duplicates(batches, pairs.__getitem__, threshold, partial(ordered_map, workers=workers))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))))
def test_repeated_is_all_but_the_first(digests):
    high, low = (np.array([digest[half] for digest in digests], np.uint64) for half in (0, 1))
    expected = [digest in digests[:at] for at, digest in enumerate(digests)]
    assert repeated(high, low).tolist() == expected


def test_digests_tell_where_the_source_ends():
    assert pair_digest("ab", "c") != pair_digest("a", "bc")
    assert pair_digest("a", "b") == pair_digest("a", "b") != pair_digest("b", "a")


def test_shingles_and_their_similarity():
    assert shingles("Abcd") == {"abc", "bcd"}
    assert shingles("ab") == {"ab"}
    assert shingles("酒店  名称 Ａ") == {"酒店 ", "店 名", " 名称", "名称 ", "称 a"}
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert similarity(("abcd", "xyz"), ("abc", "XYZ")) == similarity(("x", "abc"), ("x", "abcd")) == 0.5


def test_near_duplicates_by_hand():
    text = "The restaurant is in the centre of town ."
    pairs = [
        ("inform", text),
        ("inform", text.replace("town", "Town")),  # equal but for case
        ("inform", text.replace(" .", " !")),  # the last of its trigrams differs
        ("request", text),  # the same text for another input
        ("inform", "Goodbye !"),
    ]
    # 39 trigrams of 41 characters, "the" and "he " twice.
    assert len(shingles(text)) == 37
    assert similarity(pairs[0], pairs[2]) == 36 / 38
    assert similarity(pairs[0], pairs[3]) == 0
    assert find(pairs, 0.9) == [1, 2]
    assert find(pairs, 0.97) == [1]
    assert find(pairs, 1.0) == [1]


def test_a_dropped_row_drops_no_other():
    chain = [("x", "abcdefghijklmnopqrstuvwxyz"[at : at + 18]) for at in range(5)]
    assert [similarity(chain[0], pair) for pair in chain] == [1, 15 / 17, 14 / 18, 13 / 19, 12 / 20]
    # 1 is like 0 and dropped; 2 is like 1 but not like 0, and stays; 3 is like 2; 4 is like 3 but not like 2.
    assert find(chain, 0.85) == [1, 3]


def test_chinese_near_duplicates():
    pairs = [
        ("告知+酒店", "您好，为您推荐北京饭店，评分是四点五分，价格不贵，您看可以吗？"),
        ("告知+酒店", "您好，为您推荐北京饭店，评分是四点五分，价格不贵，您看可以吗？？"),
        ("告知+酒店", "没有找到符合条件的酒店。"),
    ]
    assert find(pairs, 0.9) == [1]


def test_against_comparing_all_with_all():
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(60):
        text = list(random.choice(list("abcdefgh "), 60))
        pairs.append(("act", "".join(text)))
        for _ in range(int(random.integers(0, 3))):
            text[int(random.integers(60))] = "x"
            pairs.append(("act", "".join(text)))
    kept, expected = [], []
    for number, pair in enumerate(pairs):
        if any(similarity(pair, pairs[other]) >= 0.8 for other in kept):
            expected.append(number)
        else:
            kept.append(number)
    assert len(expected) > 30
    found = find(pairs, 0.8)
    assert found == find(pairs, 0.8, workers=2, batch=7)
    # Hashing may miss some, but finds nothing that is not there.
    assert len(set(found) & set(expected)) >= 0.9 * len(expected)
    for number in found:
        others = set(range(number)) - set(found)
        assert max(similarity(pairs[number], pairs[other]) for other in others) >= 0.8
