"""Distinct inputs of a split with all their references, and predictions kept beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError
from stages.files import remedy, replacing


@dataclass(frozen=True)
class Inputs:
    """Distinct inputs in order of first appearance; `references[i]` are the targets of `sources[i]`."""

    sources: list[str]
    references: list[list[str]]

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """Sources and targets, one a (source, reference) pair."""
        sources = [source for source, many in zip(self.sources, self.references, strict=True) for _ in many]
        return sources, [reference for many in self.references for reference in many]


def read_inputs(path: Path) -> Inputs:
    """Read a split and group its targets by source.

    Raises:
        UserError: the file is missing, damaged, lacks the columns source and target, or has no rows.
    """
    table = read_columns(path, "source", "target")
    groups: dict[str, list[str]] = {}
    for source, target in zip(table["source"].to_pylist(), table["target"].to_pylist(), strict=True):
        groups.setdefault(source, []).append(target)
    if not groups:
        raise UserError(f"{path} has no rows: give this split a larger share in clean.split")
    return Inputs(list(groups), list(groups.values()))


def read_targets(path: Path, limit: int) -> list[str]:
    """At most `limit` targets of a split, evenly spaced.

    Raises:
        UserError: as `read_columns`.
    """
    targets = read_columns(path, "target")["target"]
    step = -(-len(targets) // limit) or 1
    return targets.take(pa.array(range(0, len(targets), step))).to_pylist()


def read_columns(path: Path, *columns: str) -> pa.Table:
    """Read columns of a parquet file.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise UserError(f"{path} lacks column {missing[0]}: run `dvc repro`")
            return file.read(columns=list(columns))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc pull` to fetch it") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged ({error}): {remedy(path)}") from None


def write_predictions(
    path: Path, splits: Mapping[str, tuple[Inputs, Sequence[str]]], signatures: Mapping[str, str]
) -> None:
    """Write predictions beside their references: split, source, prediction, references (list of string).

    Args:
        path: parquet file.
        splits: by name, in the order to write: the inputs and a prediction for each.
        signatures: how each metric was computed, kept as metadata of the schema.
    """
    schema = pa.schema(
        [
            ("split", pa.string()),
            ("source", pa.string()),
            ("prediction", pa.string()),
            ("references", pa.list_(pa.string())),
        ],
        metadata=dict(signatures),
    )
    parts = [
        pa.table(
            [[split] * len(inputs.sources), inputs.sources, list(predictions), inputs.references],
            schema=schema,
        )
        for split, (inputs, predictions) in splits.items()
    ]
    with replacing(path) as partial:
        pq.write_table(pa.concat_tables(parts), partial, compression="zstd", compression_level=3)


def read_predictions(path: Path, split: str, inputs: Inputs) -> list[str]:
    """Predictions of one split, in the order of `inputs`.

    Raises:
        UserError: the file is missing or damaged, or was made from other inputs.
    """
    table = read_columns(path, "split", "source", "prediction")
    rows = [row for row in table.to_pylist() if row["split"] == split]
    if [row["source"] for row in rows] != inputs.sources:
        raise UserError(f"{path} was made from another {split} split: run `dvc repro` for the control first")
    return [row["prediction"] for row in rows]
