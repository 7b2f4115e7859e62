"""Windows of columns: their counts sum to the matrix's, and no weight comes back, whatever was pruned before."""

from __future__ import annotations

import types
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pruning import budget, patterns
from stages.pruning.layerwise import Layer


def by_windows(weight, count, pattern, rows, held=None, width=4):
    """The mask that is chosen a window at a time, by magnitude."""
    layer = Layer("m", weight, None, count, patterns.parse(pattern), rows, held, types.SimpleNamespace())
    windows = weight.abs().split(width, dim=1)
    return torch.cat([layer.keep(window, i * width) for i, window in enumerate(windows)], dim=1)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "2x1", "1x2"])
@pytest.mark.parametrize("rows", [False, True])
@settings(deadline=None)
@given(seed=st.integers(0, 999), steps=st.lists(st.integers(0, 100), min_size=1, max_size=4))
def test_windows_sum_to_the_count_and_keep_what_is_held(pattern, rows, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    unit = patterns.parse(pattern).size
    most = 6 * 16 // unit // (2 if pattern == "2:4" else 1)
    held = None
    for share in sorted(steps):
        weight = torch.randn(6, 16, generator=generator)
        count = share * most // 100
        kept = by_windows(weight, count, pattern, rows, held)
        assert int((~kept).sum()) == count * unit
        if held is not None:
            assert not bool((kept & ~held).any())
        if pattern == "2:4":
            assert bool((kept.reshape(6, 4, 4).sum(-1) >= 2).all())
        if rows:
            lost = (~kept).reshape(-1, 2 if pattern == "2x1" else 1, 16)[:, 0].sum(1)
            assert int(lost.max() - lost.min()) <= (2 if pattern == "1x2" else 1)
        held = kept


def test_a_window_loses_its_share_even_where_all_its_weights_are_small():
    weight = torch.cat([torch.full((1, 4), 0.1), torch.full((1, 4), 9.0)], dim=1)
    kept = by_windows(weight, 4, "unstructured", rows=False)
    assert (~kept).sum(1).tolist() == [4] and (~kept[:, :4]).sum() == 2


def test_what_was_pruned_elsewhere_counts():
    """Six of eight are pruned, all but one in the first window: the second is left with the seventh."""
    held = torch.tensor([[False, False, False, False, False, True, True, True]])
    kept = by_windows(torch.arange(1.0, 9.0).reshape(1, 8), 6, "unstructured", rows=False, held=held)
    assert kept.tolist() == [[False, False, False, False, False, False, True, True]]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=6),
    data=st.data(),
)
def test_no_matrix_has_to_bring_weights_back(sizes, shares, data):
    named = {str(i): size for i, size in enumerate(sizes)}
    counts = [dict.fromkeys(named, 0)]
    for share in sorted(shares):
        uneven = {name: data.draw(st.floats(0, 1)) for name in named} if data.draw(st.booleans()) else None
        total = round(share * sum(sizes))
        counts.append(budget.apportion(total, named, uneven, counts[-1]))
        assert sum(counts[-1].values()) == total
    for before, after in pairwise(counts):
        assert all(before[name] <= after[name] <= named[name] for name in named)


def test_more_pruned_than_is_to_be_is_a_bug():
    with pytest.raises(RuntimeError, match="2 units are to be pruned, 3 are already"):
        budget.apportion(2, {"a": 4}, None, {"a": 3})
