"""From raw rows to splits, in two passes, so that memory hardly grows with the rows.

The first pass reads, and normalises and filters in several processes or machines, and leaves the rows in an Arrow file.
Between the passes, duplicates are found and splits assigned on digests, a bucket of them at a time. The second pass
goes through the file and writes each row where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import UserError
from stages.params import Clean, Data
from stages.text.cleaned import Cleaned
from stages.text.cleaner import KEPT, REASON_CODES, SPLIT_CODES, BatchCleaner
from stages.text.deduplicate import Numbered, near_duplicates, repeated
from stages.text.filtering import REASONS
from stages.text.parallel import OrderedMap, ordered_map
from stages.text.profile import Profile, describe
from stages.text.reading import SPLITS, Part, find_parts, read_batches
from stages.text.rows import no_rows
from stages.text.schema import PAIRS, REJECTED, pairs_checks, rejected_checks
from stages.text.splitting import assign, in_other_split
from stages.text.writing import PairWriter

OUTPUTS = (*SPLITS, "rejected")
"""What cleaning writes, a Parquet file each."""


def clean_pairs(
    data: Data,
    clean: Clean,
    outputs: Mapping[str, Path],
    scratch: Path,
    progress: Callable[[int], None],
    spread: OrderedMap | None = None,
) -> Profile:
    """Clean the data that params.yaml names, and split it.

    Args:
        data: where the data is.
        clean: what to do to it.
        outputs: file to write for each of `OUTPUTS`.
        scratch: an existing folder for what is needed meanwhile: the cleaned rows, and a download of a hub dataset.
        progress: called with the number of rows of each batch read.
        spread: shares batches out, in place of `clean.workers` processes of this machine.

    Returns:
        The profile of what was read, kept and rejected.

    Raises:
        UserError: data cannot be read, no row is left, or a split is without rows.
    """
    parts = find_parts(data, scratch / "hub")
    cleaner = BatchCleaner.of(data, clean)
    spread = spread or partial(ordered_map, workers=clean.workers)
    with Cleaned(scratch) as rows:
        rows.fill(spread(cleaner, read_batches(parts)), progress)
        if not len(rows):
            raise UserError(f"{data.hub or data.path} has no rows")
        _require_ready_made(parts, rows.parts)
        _decide(rows, clean, spread)
        files = [part.name for part in parts]
        profile = describe(rows, files)
        _require_rows(profile)
        with ExitStack() as stack:
            checks = dict.fromkeys(SPLITS, (PAIRS, pairs_checks(clean, data.prefix)))
            checks["rejected"] = REJECTED, rejected_checks()
            writers = {name: stack.enter_context(PairWriter(outputs[name], *checks[name])) for name in OUTPUTS}
            _write(rows, files, writers, data.prefix)
    if (written := sum(writer.rows for writer in writers.values())) != len(rows):
        raise AssertionError(f"{len(rows)} rows were read, but {written} written")
    return profile


def _decide(rows: Cleaned, clean: Clean, spread: OrderedMap) -> None:
    """Note why each row is rejected (0: it is kept), and the split of each row."""

    def reject(reason: str, numbers: np.ndarray | list[int]) -> None:
        rows.reasons[numbers] = REASON_CODES[reason]

    given = np.array(sorted(rows.labels), np.uint8)
    for some in rows.inputs:
        splits = assign(some["label"], some["input"], clean.split, given)
        rows.splits[some["row"]] = splits
        if given.any():
            reject("input_in_other_split", some["row"][in_other_split(splits, some["input"])])
    if clean.drop_duplicates:
        for some in rows.pairs:
            kept = some[rows.reasons[some["row"]] == KEPT]
            reject("duplicate", kept["row"][repeated(kept["high"], kept["low"])])
    if clean.near_duplicates is not None:
        with rows.mapped() as table:
            texts = _Texts(table)
            numbers = near_duplicates(texts.kept(rows.reasons), texts.pair, clean.near_duplicates, spread)
        reject("near_duplicate", numbers)


class _Texts:
    """The texts of a table, by row number."""

    def __init__(self, rows: pa.Table) -> None:
        self._batches = rows.select(["source", "target"]).to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def pair(self, number: int) -> tuple[str, str]:
        """Source and target of a row."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        source, target = self._batches[index].columns
        at = number - int(self._starts[index])
        return source[at].as_py(), target[at].as_py()

    def kept(self, reasons: np.ndarray) -> Iterator[Numbered]:
        """Pairs that no reason rejects, after their numbers, a batch at a time."""
        for start, batch in zip(self._starts.tolist(), self._batches, strict=False):
            at = np.flatnonzero(reasons[start : start + batch.num_rows] == KEPT)
            source, target = batch.take(pa.array(at)).columns
            yield (at + start).tolist(), list(zip(source.to_pylist(), target.to_pylist(), strict=True))


def _require_ready_made(parts: list[Part], filled: set[int]) -> None:
    """Check that no ready-made split is empty: its rows would be taken from train instead."""
    for split in SPLITS:
        numbers = [number for number, part in enumerate(parts) if part.split == split]
        if numbers and not filled.intersection(numbers):
            raise no_rows(split, *(parts[number].name for number in numbers))


def _require_rows(profile: Profile) -> None:
    if not profile["kept"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in profile["reasons"].items() if count)
        raise UserError(
            f"no row is left of {profile['read']:,} ({reasons}): check the columns and `clean` in params.yaml"
        )
    empty = [name for name, split in profile["splits"].items() if not split["rows"]]
    if empty:
        inputs = sum(split["inputs"] for split in profile["splits"].values())
        raise UserError(
            f"no rows for {' and '.join(empty)}: {inputs:,} distinct inputs were divided; add data, "
            "change clean.split in params.yaml, or bring a ready-made split"
        )


def _write(rows: Cleaned, files: list[str], writers: Mapping[str, PairWriter], prefix: str) -> None:
    names, reason_names = pa.array(files), pa.array(["", *REASONS])
    for batch, reasons, splits in rows.batches():
        kept = reasons == KEPT
        for split in SPLITS:
            some = batch.filter(pa.array(kept & (splits == SPLIT_CODES[split])))
            source = pc.binary_join_element_wise(prefix, some["source"], "")
            writers[split].write([source, some["target"], names.take(some["part"]), some["row"]])
        some = batch.filter(pa.array(~kept))
        raw = [pc.coalesce(some[f"raw_{side}"], some[side]) for side in ("source", "target")]
        why = reason_names.take(pa.array(reasons[~kept]))
        writers["rejected"].write([*raw, names.take(some["part"]), some["row"], why])
