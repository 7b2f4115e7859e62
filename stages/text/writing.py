"""Writing the cleaned rows: checked, streamed, and the same bytes for the same rows."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from pandera.pyarrow import DataFrameSchema

_ROW_GROUP = 65536


class PairWriter:
    """A Parquet file that takes rows a batch at a time and holds no more than a row group of them.

    Every row is checked by a pandera schema before it is written; a failure is an error of this program, so it
    ends with pandera's own report.
    """

    def __init__(self, path: Path, columns: pa.Schema, checks: DataFrameSchema) -> None:
        self.rows = 0
        """Rows taken so far."""
        self._columns = columns
        self._checks = checks
        self._file = pq.ParquetWriter(path, columns, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._written = 0

    def write(self, columns: list[pa.Array]) -> None:
        """Take a batch of rows, given as columns in the file's order."""
        batch = pa.record_batch(columns, schema=self._columns)
        self._waiting.append(batch)
        self.rows += batch.num_rows
        if self.rows - self._written >= _ROW_GROUP:
            self._flush()

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting, self._columns)
        if table.num_rows:
            self._file.write_table(self._checks.validate(table, lazy=True), row_group_size=table.num_rows)
        self._waiting, self._written = [], self.rows
