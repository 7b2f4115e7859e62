"""The lowest of each row, against a stable sort, with ties, infinities and counts that differ from row to row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from stages.errors import UserError
from stages.pruning import patterns, selection


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), values=st.integers(1, 9), seed=st.integers(0, 999))
def test_rows_lose_what_a_stable_sort_puts_first(rows, columns, values, seed):
    draws = torch.Generator().manual_seed(seed)
    some = torch.tensor([-torch.inf, torch.inf, -0.0, 0.0, 1.0, -1.0, 2.0, 0.5, 3.0])[
        torch.randperm(9, generator=draws)
    ]
    scores = some[torch.randint(0, values, (rows, columns), generator=draws)]
    counts = torch.randint(0, columns + 1, (rows,), generator=draws)
    order = scores.argsort(dim=1, stable=True)
    wanted = torch.ones(rows, columns, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        wanted[row, order[row, :count]] = False
    assert torch.equal(selection.keep_lowest_in_rows_out(scores, counts, name="m"), wanted)


def test_rows_are_looked_at_in_pieces(monkeypatch):
    """Memory beside scores and mask is that of a piece; what comes out does not depend on it."""
    scores = torch.randint(0, 5, (40, 8), generator=torch.Generator().manual_seed(0)).float()
    counts = selection.over_rows(170, 40)
    at_once = selection.keep_lowest_in_rows_out(scores, counts, name="m")
    seen: list[int] = []
    original = selection._kept_of_rows

    def watching(piece: torch.Tensor, count: int) -> torch.Tensor:
        seen.append(piece.numel())
        return original(piece, count)

    monkeypatch.setattr(selection, "CHUNK", 50)
    monkeypatch.setattr(selection, "_kept_of_rows", watching)
    assert torch.equal(selection.keep_lowest_in_rows_out(scores, counts, name="m"), at_once)
    assert max(seen) <= 50 and sum(seen) == scores.numel()


def test_scores_that_are_no_numbers_are_refused():
    scores = torch.tensor([[1.0, torch.nan]])
    with pytest.raises(UserError, match="importance scores of m are not numbers"):
        selection.keep_lowest_in_rows_out(scores, torch.tensor([1]), name="m")


@pytest.mark.parametrize("group", [2, 4, 16, 17, 40])
def test_groups_keep_what_a_stable_sort_puts_last(group):
    """Of both ways of ranking, with ties."""
    scores = torch.randint(0, 5, (6, 3 * group), generator=torch.Generator().manual_seed(0)).float()
    pattern = patterns.parse(f"{group // 2}:{group}")
    order = scores.reshape(6, 3, group).argsort(dim=-1, stable=True)
    wanted = scores.reshape(6, 3, group).scatter(-1, order[..., group - group // 2 :], torch.inf).reshape(scores.shape)
    units = pattern.scores(scores)
    assert torch.equal(units, wanted)
    assert pattern.candidates(units.numel()) == int((units != torch.inf).sum())


@pytest.mark.parametrize("rows", [False, True])
def test_all_that_can_go_goes_without_a_threshold(rows, monkeypatch):
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("looked for a threshold")

    units = patterns.parse("2:4").scores(torch.rand(6, 8, generator=torch.Generator().manual_seed(0)))
    with monkeypatch.context() as patch:
        patch.setattr(selection, "lowest", refuse)
        patch.setattr(selection, "keep_lowest_in_rows_out", refuse)
        assert torch.equal(selection.keep_lowest_out(units, 24, rows=rows, name="m"), units == torch.inf)
    assert int(selection.keep_lowest_out(units, 23, rows=rows, name="m").sum()) == 25


def test_rows_that_can_lose_more_than_others_lose_as_many():
    units = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, torch.inf, torch.inf], [1.0, 2.0, 3.0, torch.inf]])
    kept = selection.keep_lowest_out(units, 9, rows=True, name="m")
    assert (~kept).sum(dim=1).tolist() == [3, 3, 3]


def test_rows_are_compared_without_a_whole_number_for_each_score():
    units = torch.zeros(2**10, 2**10)
    units[:, 0] = torch.inf
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        assert not selection._uneven(units == torch.inf)
    assert max(event.cpu_memory_usage for event in seen.events()) <= 8 * selection.CHUNK < 8 * units.numel()
    units[-1, 1] = torch.inf
    assert selection._uneven(units == torch.inf)


def test_all_that_can_go_is_still_looked_at_for_numbers():
    units = torch.tensor([[1.0, torch.nan, torch.inf, torch.inf]])
    with pytest.raises(UserError, match="importance scores of m are not numbers"):
        selection.keep_lowest_out(units, 2, rows=False, name="m")
