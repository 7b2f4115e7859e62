"""Windows of columns: their counts sum to the matrix's, and no weight comes back, whatever was pruned before."""

from __future__ import annotations

import types
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import UserError
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


@pytest.mark.parametrize("others", [True, False])
@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    own=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    steps=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    room=st.floats(0, 0.99),
)
def test_layers_with_their_own_sparsity_keep_pace_however_close_the_steps(others, sizes, own, steps, room):
    """As in gradual fine-tuning: shares and the total grow alike, and nothing has to come back."""
    named = {str(i): size for i, size in enumerate(sizes)}
    layers = dict(zip(named, own, strict=False))
    free = {"free": 7} if others else {}
    whole = sum(named.values()) + sum(free.values())
    sparsity = (sum(layers[n] * size for n, size in named.items()) + room * sum(free.values())) / whole
    gone = dict.fromkeys(named | free, 0)
    for step in sorted(steps):
        plan = budget.divide(named | free, sparsity * step, {n: share * step for n, share in layers.items()}, gone)
        counts = plan.fixed | ({"free": plan.rest} if others else {})
        assert sum(counts.values()) == round(sparsity * step * whole)
        assert all(gone[name] <= counts[name] for name in gone)
        assert all(abs(counts[n] - layers[n] * step * size) < 2 for n, size in named.items())
        gone = counts


def test_of_no_sparsity_no_layer_loses_anything():
    plan = budget.divide({"a": 10, "b": 10}, 0.0, {"a": 0.9})
    assert (plan.fixed, plan.rest, plan.others) == ({"a": 0}, 0, ["b"])


def test_layers_are_protected_to_the_last_unit():
    plan = budget.divide({"a": 3, "b": 3, "c": 3}, 0.5, {"a": 0, "b": 0.5, "c": 1.0})
    assert plan.fixed["a"] == 0 and sum(plan.fixed.values()) == 4


@pytest.mark.parametrize(("sparsity", "layers"), [(0.1, {"a": 0.9}), (0.9, {"a": 0.1}), (0.5, {"a": 0.2, "b": 0.2})])
def test_layers_that_the_others_cannot_make_up_for(sparsity, layers):
    with pytest.raises(UserError, match=r"prune.layers: .* blocks of 2x2, those layers lose .* choose other shares"):
        budget.divide({"a": 20, "b": 20}, sparsity, layers, unit="blocks of 2x2")


def test_more_pruned_than_is_to_be_is_a_bug():
    with pytest.raises(RuntimeError, match="2 units are to be pruned, 3 are already"):
        budget.apportion(2, {"a": 4}, None, {"a": 3})
