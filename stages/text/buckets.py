"""Rows on disk, apart by a digest: rows with equal digests are in one bucket, and one bucket at a time is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

COUNT = 64
"""Buckets: of ten million rows each has 156,000, which is four megabytes."""


class Buckets:
    """Records, given once, read any number of times."""

    def __init__(self, folder: Path, digest: str, *others: tuple[str, type[np.generic]]) -> None:
        """Begin.

        Args:
            folder: for the files.
            digest: name of the field whose equal values are to come together, uint64, evenly spread.
            others: names and types of further fields.
        """
        self._fields = np.dtype([(digest, np.uint64), *others])
        self._digest = digest
        folder.mkdir(exist_ok=True)
        self._files = [(folder / f"{number:02}").open("w+b") for number in range(COUNT)]

    def add(self, **columns: np.ndarray) -> None:
        """Add records, given by field, each of shape (records,)."""
        numbers = columns[self._digest] % np.uint64(COUNT)
        order = np.argsort(numbers, kind="stable")
        records = np.empty(len(order), self._fields)
        for name, column in columns.items():
            records[name] = column[order]
        bounds = np.searchsorted(numbers[order], np.arange(COUNT + 1, dtype=np.uint64)).tolist()
        for file, first, end in zip(self._files, bounds, bounds[1:], strict=False):
            if end > first:
                file.write(records[first:end].tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        """Every bucket that has records, as a structured array of shape (records,), in the order they were added."""
        for file in self._files:
            file.seek(0)  # writes what waits, too
            records = np.frombuffer(file.read(), self._fields)
            if len(records):
                yield records

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()
