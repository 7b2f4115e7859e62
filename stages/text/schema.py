"""What the cleaned data must look like, checked before it is written."""

from __future__ import annotations

import pandera.pyarrow as pandera
import pyarrow as pa

from stages.params import Clean
from stages.text.filtering import REASONS

PAIRS = pa.schema(
    {
        "source": pa.string(),
        "target": pa.string(),
        "file": pa.string(),
        "row": pa.int64(),
    }
)
"""Columns of train, validation and test: a row a pair."""

REJECTED = PAIRS.append(pa.field("reason", pa.string()))
"""Columns of the rejected rows, texts as read."""


def pairs_checks(clean: Clean, prefix: str) -> pandera.DataFrameSchema:
    """What kept pairs must be: texts within the bounds of params.yaml, from a numbered row of a file."""
    return _checks(
        source=_text(len(prefix) + clean.min_characters, len(prefix) + clean.max_source_characters),
        target=_text(clean.min_characters, clean.max_target_characters),
    )


def rejected_checks() -> pandera.DataFrameSchema:
    """What rejected rows must be: texts as they were, empty or long, and a known reason."""
    return _checks(
        source=_text(0, None),
        target=_text(0, None),
        reason=pandera.Column(pa.string(), pandera.Check.isin(list(REASONS))),
    )


def _checks(**texts: pandera.Column) -> pandera.DataFrameSchema:
    place = {
        "file": _text(1, None),
        "row": pandera.Column(pa.int64(), pandera.Check.ge(1)),
    }
    return pandera.DataFrameSchema({**texts, **place}, strict=True)


def _text(shortest: int, longest: int | None) -> pandera.Column:
    return pandera.Column(pa.string(), pandera.Check.str_length(shortest, longest))
