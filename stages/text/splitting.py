"""Which split a row belongs to. Splits are numbered as in `SPLIT_CODES`, 0 for none given."""

from __future__ import annotations

import numpy as np

from stages.params import SplitShares
from stages.text.cleaner import SPLIT_CODES

TRAIN, VALIDATION, TEST = (SPLIT_CODES[name] for name in ("train", "validation", "test"))


def assign(labels: np.ndarray, inputs: np.ndarray, shares: SplitShares, given: np.ndarray | None = None) -> np.ndarray:
    """Splits of rows: the ready-made ones, and for all other rows a choice that depends on the input alone.

    An input's digest, read as a number in [0, 1), falls into the range of one split. So equal inputs always
    share a split, and a row's split does not depend on which other rows there are. Rows labelled train are
    divided too, unless they fall into the range of a ready-made split: data with train and test gets a
    validation split this way. The ranges are fixed by the shares alone, so a split that becomes ready-made
    gives the rows that stood in for it back to train, and moves no others.

    Args:
        labels: ready-made splits, shape (rows,).
        inputs: 64-bit digests of the inputs, shape (rows,).
        shares: how much of the inputs each split gets.
        given: ready-made splits that these or other rows have; None: those of `labels`.

    Returns:
        Splits, shape (rows,), uint8.
    """
    bounds = np.cumsum([shares.train, shares.validation, shares.test])
    # The upper 53 bits, as many as a float holds exactly.
    position = (inputs >> np.uint64(11)) * 2.0**-53
    of_range = np.array([TRAIN, VALIDATION, TEST], np.uint8)
    of_range[np.isin(of_range, labels if given is None else given)] = TRAIN
    chosen = of_range[np.searchsorted(bounds[:-1] / bounds[-1], position, side="right")]
    return np.where(labels > TRAIN, labels, chosen).astype(np.uint8)


def in_other_split(splits: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Rows whose input a more protected split has too: test before validation before train.

    Happens with ready-made splits only. Whoever made them compares by the test split, so that stays whole.

    Returns:
        Boolean mask, shape (rows,).
    """
    found = np.zeros(len(splits), bool)
    for held_out in (TEST, VALIDATION):
        less_protected = splits < held_out
        found |= less_protected & np.isin(inputs, inputs[splits == held_out])
    return found
