"""The work on a batch that needs nothing but the batch: normalise, filter, digest. Processes share it out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa

from stages.errors import UserError
from stages.params import Clean, Data
from stages.text.filtering import REASONS, Filter
from stages.text.normalise import Normaliser, comparable
from stages.text.reading import SPLITS, Batch, Row, split_of
from stages.text.rows import NotText

KEPT = 0
REASON_CODES = {reason: code for code, reason in enumerate(REASONS, KEPT + 1)}
SPLIT_CODES: dict[str | None, int] = {None: 0} | {split: code for code, split in enumerate(SPLITS, 1)}

CLEANED = pa.schema(
    {
        "part": pa.int32(),
        "row": pa.int64(),
        "source": pa.string(),  # normalised; null in a rejected row
        "target": pa.string(),
        "raw_source": pa.string(),  # as read; null where normalising changed nothing
        "raw_target": pa.string(),
        "reason": pa.uint8(),  # of REASON_CODES
        "label": pa.uint8(),  # ready-made split, of SPLIT_CODES
        "input": pa.uint64(),  # digest of the comparable source
        "pair_high": pa.uint64(),  # halves of the digest of source and target
        "pair_low": pa.uint64(),
    }
)
"""Columns of a cleaned batch."""


class _Text(NamedTuple):
    text: str
    raw: str | None
    problem: str | None = None


@dataclass(frozen=True)
class BatchCleaner:
    """Normalises and filters batches; picklable, so that processes can share the work."""

    normalise: Normaliser
    reject: Filter
    labelled: bool
    """Whether rows say their split themselves, in a column."""

    @classmethod
    def of(cls, data: Data, clean: Clean) -> BatchCleaner:
        """The cleaner that params.yaml describes."""
        return cls(Normaliser.of(clean), Filter.of(clean), data.split is not None)

    def __call__(self, batch: Batch) -> pa.RecordBatch:
        """Cleaned rows, in order, with the columns `CLEANED`.

        Raises:
            UserError: a row's ready-made split is none of train, validation and test.
        """
        # Many rows have the same input; its cleaned form is remembered for the batch.
        remembered = functools.cache(self._source)
        rows: list[tuple[str | int | None, ...]] = []
        for number, row in enumerate(batch.rows, batch.first_row):
            label = SPLIT_CODES[self._split(batch, number, row)]
            source, digest = remembered(row.source)
            target = self._text(row.target)
            reason = "malformed" if row.malformed else self._reason(source, target)
            if reason is None:
                pair = pair_digest(source.text, target.text)
                rows.append((source.text, target.text, source.raw, target.raw, KEPT, label, digest, *pair))
            else:
                raw = source.raw or source.text, target.raw or target.text
                rows.append((None, None, *raw, REASON_CODES[reason], label, 0, 0, 0))
        columns = [
            [batch.part] * len(rows),
            range(batch.first_row, batch.first_row + len(rows)),
            *zip(*rows, strict=True),
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, CLEANED, strict=True)]
        return pa.record_batch(arrays, schema=CLEANED)

    def _source(self, cell: str | NotText | None) -> tuple[_Text, int]:
        source = self._text(cell)
        return source, input_digest(source.text)

    def _text(self, cell: str | NotText | None) -> _Text:
        if isinstance(cell, str):
            text = self.normalise(cell)
            return _Text(text, None if text == cell else cell)
        if cell is None:
            return _Text("", None)
        return _Text("", cell.written, "not_text")

    def _split(self, batch: Batch, number: int, row: Row) -> str | None:
        if not self.labelled or row.malformed:
            return batch.split
        split = split_of(row.split)
        if split is None:
            raise UserError(
                f"{batch.file}, row {number}: {row.split!r} in the column data.split is no split; "
                "use train, validation and test"
            )
        return split

    def _reason(self, source: _Text, target: _Text) -> str | None:
        if source.problem:
            return f"source_{source.problem}"
        if target.problem:
            return f"target_{target.problem}"
        return self.reject(source.text, target.text)


def input_digest(source: str) -> int:
    """64 bits of an input: what decides its split, equal for inputs that differ in width, case or white space."""
    return int.from_bytes(blake2b(comparable(source).encode(), digest_size=8).digest())


def pair_digest(source: str, target: str) -> tuple[int, int]:
    """128 bits of a pair, in halves."""
    text = source.encode()
    digest = blake2b(len(text).to_bytes(8) + text + target.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
