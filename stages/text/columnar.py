"""Readers of Parquet files, of folders saved by `datasets`, and of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from stages.errors import UserError
from stages.text.rows import Columns, Row, no_rows, read_bytes

_BATCH_ROWS = 8192


def read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a Parquet file.

    Raises:
        UserError: it is no Parquet file, lacks a column, or a column holds neither text nor numbers.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(read_bytes(path)) if path.suffix == ".gz" else path)
        columns.positions(file.schema_arrow.names, str(path))
        yield from _rows(file.iter_batches(_BATCH_ROWS, columns=columns.names()), columns, str(path))
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of names in it
        raise UserError(f"{path} is not a readable Parquet file: {_first_line(error)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or _first_line(error)}") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder (`Dataset.save_to_disk` or `DatasetDict.save_to_disk`)."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_saved(folder: Path) -> dict[str, Any]:
    """Datasets of a saved folder by split name; one without splits has the name "".

    Raises:
        UserError: the folder is not whole, or has a split without rows.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # damaged JSON in it ends in whatever the library then stumbles over
        if _has_no_files(folder):
            raise UserError(f"{folder} has no rows") from None
        if empty := next((split for split in _splits(folder) if _has_no_files(folder / split)), None):
            raise no_rows(empty, str(folder / empty)) from None
        raise UserError(f"{folder} is not a readable `datasets` folder: {_first_line(error)}") from None
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"": loaded}


def load_hub(name: str, cache: Path) -> dict[str, Any]:
    """Datasets of a hub id by split name, downloaded to `cache`.

    Args:
        name: `owner/name`, with `:configuration` and `@revision` where the dataset has or needs them.
        cache: folder for the download.

    Raises:
        UserError: the hub cannot be reached, or has no such dataset.
    """
    from datasets import load_dataset

    path, _, revision = name.partition("@")
    path, _, configuration = path.partition(":")
    try:
        loaded = load_dataset(path, configuration or None, revision=revision or None, cache_dir=str(cache))
    except Exception as error:  # the hub client raises dozens of kinds, down to its HTTP library's
        raise UserError(f"cannot load data.hub {name!r}: {_first_line(error)}") from None
    return dict(loaded)


def read_dataset(dataset: Any, columns: Columns, origin: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`.

    Raises:
        UserError: it is damaged, lacks a column, or a column holds neither text nor numbers.
    """
    columns.positions(dataset.column_names, origin)
    try:
        tables = dataset.select_columns(columns.names()).with_format("arrow").iter(_BATCH_ROWS)
        yield from _rows(_validated(tables), columns, origin)
    except UserError:
        raise
    except Exception as error:  # of Arrow, of the library on top of it, or of the system below
        raise UserError(f"{origin} is damaged ({_first_line(error)}): save the dataset again") from None


def _splits(folder: Path) -> list[str]:
    """Names of the splits of a saved `DatasetDict`."""
    return sorted(path.parent.name for path in folder.glob("*/state.json"))


def _has_no_files(folder: Path) -> bool:
    """Whether a saved dataset was empty, of which `datasets` writes no file, and which it then cannot load."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"] == []
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _validated(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        # These lie in memory as they lie in the file; reading a text by a wrong offset would crash the process.
        table.validate(full=True)
        yield from table.to_batches()


def _rows(batches: Iterable[pa.RecordBatch], columns: Columns, origin: str) -> Iterator[Row]:
    for batch in batches:
        cells = [_texts(batch.column(name), name, origin) for name in columns.names()]
        yield from map(Row, *cells)


def _texts(column: pa.Array, name: str, origin: str) -> list[str | None]:
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if not (is_text or is_number or types.is_null(kind)):
        raise UserError(f"{origin}: column {name!r} holds {kind}, not text: choose another in params.yaml")
    try:
        return (column if is_text else column.cast(pa.string())).to_pylist()
    except UnicodeDecodeError:
        raise UserError(f"{origin}: column {name!r} is not UTF-8; write it again as UTF-8 text") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
