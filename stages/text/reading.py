"""Finding the data that `params.yaml` names, and reading it in batches of numbered rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from stages.errors import UserError
from stages.params import Data
from stages.params.section import leads_out
from stages.text import columnar
from stages.text.delimited import read_csv, read_text_pair, read_tsv
from stages.text.json_rows import read_json, read_json_lines
from stages.text.rows import Columns, Row

READERS: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": columnar.read_parquet,
}
"""Reader of a file by its suffix, before `.gz`."""

PAIR_SUFFIXES = (".source", ".target")

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "development": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What ready-made splits are called, in any case."""

BATCH_ROWS = 8192


@dataclass(frozen=True)
class Part:
    """One file, one pair of text files, or one split of a saved dataset."""

    name: str
    """What `file` says in the outputs: the path below the project folder as given, or hub id and split."""
    split: str | None
    """The ready-made split all its rows belong to."""
    read: Callable[[], Iterator[Row]]


class Batch(NamedTuple):
    """Consecutive rows of one part."""

    part: int
    """Index of the part."""
    file: str
    first_row: int
    """Number of its first row, counted from 1 in the part."""
    split: str | None
    rows: list[Row]


def find_parts(data: Data, cache: Path) -> list[Part]:
    """The parts that `data` names, in name order.

    Args:
        data: the section of params.yaml.
        cache: folder that a hub dataset is downloaded to.

    Raises:
        UserError: nothing is there, one file of a text pair is named alone, or only some of several files name
            their split.
    """
    source, target = (data.target, data.source) if data.swap else (data.source, data.target)
    columns = Columns(source, target, data.split)
    if data.hub is not None:
        return _dataset_parts(data.hub, columnar.load_hub(data.hub, cache), columns)
    path = Path(data.path)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot read data.path {data.path}: {error.strerror}") from None
    if is_folder:
        if columnar.is_saved_dataset(path):
            return _dataset_parts(data.path, columnar.load_saved(path), columns)
        return _folder_parts(path, data, columns)
    if not exists:
        raise UserError(f"{data.path} does not exist: set data.path in params.yaml to your data")
    if _suffix(path) in PAIR_SUFFIXES:
        raise UserError(
            f"{data.path} is half of a pair, and DVC would not see the other half change: "
            f"set data.path to their folder, and data.pattern to {path.name!r}"
        )
    return [_file_part(path, None, data, columns)]


def read_batches(parts: list[Part]) -> Iterator[Batch]:
    """All rows of all parts, at most `BATCH_ROWS` at a time."""
    for index, part in enumerate(parts):
        rows = part.read()
        first_row = 1
        while batch := list(islice(rows, BATCH_ROWS)):
            yield Batch(index, part.name, first_row, part.split, batch)
            first_row += len(batch)


def split_of(label: str | None) -> str | None:
    """The split that a label such as `dev` stands for; None if it stands for none."""
    return SPLIT_NAMES.get((label or "").strip().casefold())


def _folder_parts(folder: Path, data: Data, columns: Columns) -> list[Part]:
    found = sorted({_pair_source(path) for path in _matching(folder, data.pattern) if _is_data(path)})
    if not found:
        raise UserError(f"{folder} has no file matching data.pattern {data.pattern!r} of a known kind: {_known()}")
    if out := next((path for path in found if leads_out(path)), None):
        raise UserError(f"{out} is a link that leaves the project: set data.path to the absolute path if it is meant")
    splits = [_split_in_name(path.relative_to(folder)) for path in found]
    if data.split is None and any(splits) and len(found) > 1:
        if None in splits:
            unnamed = found[splits.index(None)]
            raise UserError(f"{unnamed} does not say its split, but other files do: rename it, or set data.pattern")
    else:
        splits = [None] * len(found)
    return [_file_part(path, split, data, columns) for path, split in zip(found, splits, strict=True)]


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        if ".." in Path(pattern).parts:
            raise ValueError  # DVC does not track what is outside
        return list(folder.glob(pattern))
    except (ValueError, NotImplementedError, IndexError):  # which one depends on the version of Python
        raise UserError(
            f"data.pattern {pattern!r} cannot match files below {folder}: write for example '*.csv' or '**/*.csv'"
        ) from None


def _file_part(path: Path, split: str | None, data: Data, columns: Columns) -> Part:
    suffix = _suffix(path)
    if suffix in PAIR_SUFFIXES:
        if columns.split is not None:
            raise UserError(f"{path} is plain text and has no column {columns.split!r}: set data.split to null")
        names = PAIR_SUFFIXES[::-1] if data.swap else PAIR_SUFFIXES
        pair = [_pair_file(path, name) for name in names]
        return Part(_pair_source(path).as_posix(), split, partial(read_text_pair, *pair))
    if suffix not in READERS:
        raise UserError(f"{path}: unknown kind of file; known: {_known()}")
    return Part(path.as_posix(), split, partial(READERS[suffix], path, columns))


def _dataset_parts(name: str, datasets: dict[str, object], columns: Columns) -> list[Part]:
    ready_made = columns.split is None and len(datasets) > 1
    parts = []
    for key, dataset in sorted(datasets.items()):
        split = split_of(key) if ready_made else None
        if ready_made and split is None:
            raise UserError(f"{name} has a split {key!r}: only train, validation and test can be used")
        origin = f"{name}/{key}" if key else name
        parts.append(Part(origin, split, partial(columnar.read_dataset, dataset, columns, origin)))
    return parts


def _known() -> str:
    return f"{', '.join((*READERS, *PAIR_SUFFIXES))}, each also with .gz"


def _is_data(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and _suffix(path) in {*READERS, *PAIR_SUFFIXES}


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _pair_source(path: Path) -> Path:
    """The source file of a pair, for either of its files; any other path as it is."""
    return _pair_file(path, PAIR_SUFFIXES[0]) if _suffix(path) in PAIR_SUFFIXES else path


def _pair_file(path: Path, suffix: str) -> Path:
    """The file of `path`'s pair with this suffix, gzipped or not."""
    plain = (path.with_suffix("") if path.suffix == ".gz" else path).with_suffix(suffix)
    gzipped = plain.with_name(plain.name + ".gz")
    return gzipped if gzipped.is_file() and not plain.is_file() else plain


def _split_in_name(path: Path) -> str | None:
    """The split that a word of a relative path names: `dev.csv`, `train-00000-of-00002.parquet`, `test/a.json`."""
    named = {split for word in re.split(r"[\W_]+", str(path)) if (split := split_of(word))}
    return named.pop() if len(named) == 1 else None
