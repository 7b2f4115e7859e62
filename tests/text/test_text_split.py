"""Splits depend on the input alone, ready-made ones stand, and no input is in two."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.params import SplitShares
from stages.text.cleaner import input_digest
from stages.text.splitting import TEST, TRAIN, VALIDATION, assign, in_other_split

SHARES = SplitShares(train=0.8, validation=0.1, test=0.1)
NONE = 0


def digests(texts):
    return np.array([input_digest(text) for text in texts], np.uint64)


def at(*positions):
    """Digests at these places in [0, 1)."""
    return np.array([int(position * 2**64) for position in positions], np.uint64)


def test_an_input_falls_into_the_share_its_digest_points_to():
    labels = np.zeros(7, np.uint8)
    places = at(0, 0.5, 0.79999, 0.80001, 0.89999, 0.90001, 1 - 2**-50)
    assert assign(labels, places, SHARES).tolist() == [TRAIN] * 3 + [VALIDATION] * 2 + [TEST] * 2


def test_the_hash_is_the_documented_one():
    digest = blake2b(b"hotel-inform (area)", digest_size=8).digest()
    assert input_digest("Hotel-Inform  (AREA)") == int.from_bytes(digest, "big")


def test_shares_are_of_inputs():
    splits = assign(np.zeros(20_000, np.uint8), digests(f"input {i}" for i in range(20_000)), SHARES)
    for split, share in ((TRAIN, 0.8), (VALIDATION, 0.1), (TEST, 0.1)):
        assert (splits == split).mean() == pytest.approx(share, abs=0.01)


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1), st.lists(st.text()))
def test_adding_rows_moves_none(old, new):
    before = assign(np.zeros(len(old), np.uint8), digests(old), SHARES)
    after = assign(np.zeros(len(old) + len(new), np.uint8), digests(old + new), SHARES)
    assert before.tolist() == after[: len(old)].tolist()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "A", "ａ", " a", "b", "B ", "ß", "SS", "酒店", "c"])))
def test_inputs_that_compare_equal_share_a_split(texts):
    splits = assign(np.zeros(len(texts), np.uint8), digests(texts), SHARES)
    of_text: dict[str, set[int]] = {}
    for text, split in zip(texts, splits.tolist(), strict=True):
        key = {"A": "a", "ａ": "a", " a": "a", "B ": "b", "SS": "ß"}.get(text, text)
        of_text.setdefault(key, set()).add(split)
    assert all(len(splits) == 1 for splits in of_text.values())


def test_ready_made_splits_stand():
    labels = np.array([TRAIN, VALIDATION, TEST, TEST], np.uint8)
    assert assign(labels, at(0.99, 0.1, 0.1, 0.99), SHARES).tolist() == labels.tolist()


def test_splits_that_are_not_ready_made_come_out_of_train():
    places = at(0, 0.79, 0.81, 0.89, 0.91, 0)
    labels = np.array([TRAIN] * 5 + [TEST], np.uint8)
    assert assign(labels, places, SHARES).tolist() == [TRAIN] * 2 + [VALIDATION] * 2 + [TRAIN, TEST]
    labels = np.array([TRAIN] * 5 + [VALIDATION], np.uint8)
    assert assign(labels, places, SHARES).tolist() == [TRAIN] * 4 + [TEST, VALIDATION]
    labels = np.array([TRAIN, NONE, TRAIN], np.uint8)
    assert assign(labels, at(0.1, 0.85, 0.95), SHARES).tolist() == [TRAIN, VALIDATION, TEST]


LABELLED = st.lists(st.tuples(st.sampled_from([TRAIN, VALIDATION, TEST]), st.floats(0, 1, exclude_max=True)))


@settings(deadline=None)
@given(LABELLED, LABELLED)
def test_adding_ready_made_rows_only_gives_train_back_what_stood_in_for_them(old, new):
    before, after = (
        assign(np.array([label for label, _ in rows], np.uint8), at(*(place for _, place in rows)), SHARES)
        for rows in (old, old + new)
    )
    appeared = {label for label, _ in new} - {label for label, _ in old}
    for (label, _), was, now in zip(old, before.tolist(), after.tolist(), strict=False):
        stood_in = label == TRAIN and was in appeared - {TRAIN}
        assert now == (TRAIN if stood_in else was)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([TRAIN, VALIDATION, TEST]), st.integers(0, 3)), min_size=1))
def test_held_out_inputs_are_taken_out_of_the_other_splits(rows):
    splits = np.array([split for split, _ in rows], np.uint8)
    inputs = np.array([number for _, number in rows], np.uint64)
    found = in_other_split(splits, inputs)
    assert not found[splits == TEST].any()
    kept = {(number, split) for (split, number), out in zip(rows, found, strict=True) if not out}
    assert len({number for number, _ in kept}) == len(kept) == len(set(inputs.tolist()))
    for split, number in rows:
        highest = max(other for other, same in rows if same == number)
        assert ((number, split) in kept) == (split == highest)
