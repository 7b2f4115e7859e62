"""The cleaned rows between the two passes: on disk, but for two bytes a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from stages.text.buckets import Buckets
from stages.text.cleaner import CLEANED, KEPT


class Cleaned:
    """Rows with the columns `CLEANED`, as they were read, and what was decided of each."""

    def __init__(self, folder: Path) -> None:
        """Begin, with no rows; `folder` exists, and takes the files."""
        self._path = folder / "cleaned.arrow"
        self._stack = ExitStack()
        row = ("row", np.int64)
        self.pairs = self._stack.enter_context(Buckets(folder / "pairs", "high", ("low", np.uint64), row))
        """Digests of the pairs kept by the first pass, and the numbers of their rows, counted from 0."""
        self.inputs = self._stack.enter_context(Buckets(folder / "inputs", "input", ("label", np.uint8), row))
        """Digests of their inputs, and their ready-made splits."""
        self.parts: set[int] = set()
        """Parts that have rows."""
        self.labels: set[int] = set()
        """Ready-made splits that a row has, 0 for none."""
        self.reasons = np.empty(0, np.uint8)
        """Why each row is rejected (0: it is kept), shape (rows,)."""
        self.splits = np.empty(0, np.uint8)
        """Split of each row that is kept, shape (rows,)."""

    def fill(self, batches: Iterable[pa.RecordBatch], progress: Callable[[int], None]) -> None:
        """Write all rows; `progress` is called with the number of rows of each batch."""
        reasons = [self.reasons]
        start = 0
        with pa.OSFile(str(self._path), "wb") as file, pa.ipc.new_file(file, CLEANED) as writer:
            for batch in batches:
                writer.write_batch(batch)
                columns = {name: batch[name].to_numpy() for name in _NUMBERS}
                self.parts.update(np.unique(columns["part"]).tolist())
                self.labels.update(np.unique(columns["label"]).tolist())
                reasons.append(columns["reason"].copy())  # the batch is not to stay for it
                kept = np.flatnonzero(columns["reason"] == KEPT)
                high, low, inputs, labels = (columns[n][kept] for n in ("pair_high", "pair_low", "input", "label"))
                self.pairs.add(high=high, low=low, row=kept + start)
                self.inputs.add(input=inputs, label=labels, row=kept + start)
                start += batch.num_rows
                progress(batch.num_rows)
        self.reasons = np.concatenate(reasons)
        self.splits = np.zeros_like(self.reasons)

    def __len__(self) -> int:
        return len(self.reasons)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray]]:
        """Rows, their reasons and their splits, a batch at a time. Read, not mapped: pages would stay."""
        start = 0
        with pa.OSFile(str(self._path)) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                here = slice(start, start + batch.num_rows)
                yield batch, self.reasons[here], self.splits[here]
                start = here.stop

    @contextmanager
    def mapped(self) -> Iterator[pa.Table]:
        """All rows, for those who go to and fro in them."""
        with pa.memory_map(str(self._path)) as file:
            yield pa.ipc.open_file(file).read_all()

    def __enter__(self) -> Cleaned:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stack.close()


_NUMBERS = ("part", "reason", "label", "input", "pair_high", "pair_low")
