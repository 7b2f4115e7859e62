"""Rows on disk by their digests: all of them, equal ones together; and percentiles of counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.buckets import COUNT, Buckets
from stages.text.profile import summary


def test_records_come_back_each_once_with_their_equals_and_in_order(tmp_path):
    draw = np.random.default_rng(0)
    digests = draw.integers(0, 2**64, 500, np.uint64, endpoint=False)[draw.integers(0, 500, 3000)]
    with Buckets(tmp_path / "new", "digest", ("row", np.int64)) as buckets:
        for first in range(0, 3000, 1024):
            rows = np.arange(first, min(first + 1024, 3000))
            buckets.add(digest=digests[rows], row=rows)
        buckets.add(digest=np.empty(0, np.uint64), row=np.empty(0, np.int64))
        found = list(buckets)
        assert [bucket.tolist() for bucket in buckets] == [bucket.tolist() for bucket in found]  # any number of times
    assert len(found) > COUNT // 2
    assert sorted(row for bucket in found for row in bucket["row"].tolist()) == list(range(3000))
    where: dict[int, set[int]] = {}
    for number, bucket in enumerate(found):
        assert bucket["digest"].tolist() == digests[bucket["row"]].tolist()
        assert bucket["row"].tolist() == sorted(bucket["row"].tolist())
        for digest in bucket["digest"].tolist():
            where.setdefault(digest, set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300))
def test_summary_of_counts_is_that_of_the_lengths(lengths):
    p50, p95 = np.percentile(lengths, [50, 95], method="nearest")
    mean = pytest.approx(np.mean(lengths), abs=5e-4)
    assert summary(Counter(lengths)) == {"mean": mean, "p50": p50, "p95": p95, "max": max(lengths)}


def test_summary_of_nothing():
    assert summary(Counter()) == {"mean": 0.0, "p50": 0, "p95": 0, "max": 0}
