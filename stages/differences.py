"""Where two versions of an output differ first, in the terms of its format.

A tensor of a safetensors file, a column and row of a table, a key of a JSON file; of anything else the first byte.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

CHUNK = 2**20
MASKS_FILE = "masks.safetensors"
"""As in stages.bitmasks, which would import torch: its tensors are bits, one a weight."""
LONGEST = 60
"""Characters of a value that are shown."""
ABSENT = "nothing"


def first_difference(before: Path, now: Path) -> str | None:
    """Say where a file or folder differs first from what it was; None if every byte is the same.

    Of a folder, the first differing file by name is described and the others are counted.

    Args:
        before: the version to compare with.
        now: the version that is described.
    """
    if not before.is_dir() and not now.is_dir():
        return None if _same_bytes(before, now) else _describe(before, now)
    names = sorted({file.relative_to(top).as_posix() for top in (before, now) for file in _files(top)})
    differing = [name for name in names if not _same_bytes(before / name, now / name)]
    if not differing:
        return None
    others = f" (and {len(differing) - 1} more of {len(names)} files)" if differing[1:] else ""
    return f"{differing[0]}: {_describe(before / differing[0], now / differing[0])}{others}"


def _describe(before: Path, now: Path) -> str:
    for path, words in ((before, "is new"), (now, "is missing")):
        if not path.is_file():
            return words
    compare = _FORMATS.get(now.suffix)
    if compare is not None:
        try:
            found = compare(before, now)
        except Exception:  # damaged in one of the versions, in any of a format's ways: then bytes have to do
            found = None
        if found:
            return found
    return _first_byte(before, now)


def _tensors(before: Path, now: Path) -> str | None:
    """The first tensor, by name, that has another type, shape or value."""
    from safetensors import safe_open

    with safe_open(before, framework="pt") as old, safe_open(now, framework="pt") as new:
        known, names = set(old.keys()), set(new.keys())
        for name in sorted(known | names):
            if name not in known or name not in names:
                return f"tensor {name} {'is new' if name in names else 'is missing'}"
            if found := _tensor(old.get_tensor(name), new.get_tensor(name), bits=now.name == MASKS_FILE):
                return f"tensor {name}: {found}"
        return _entries(old.metadata() or {}, new.metadata() or {}, "metadata ")


def _tensor(old: torch.Tensor, new: torch.Tensor, *, bits: bool) -> str | None:
    import numpy as np
    import torch

    for what in ("dtype", "shape"):
        if (was := getattr(old, what)) != (is_now := getattr(new, what)):
            described = [str(value if what == "dtype" else tuple(value)) for value in (was, is_now)]
            return f"{what} {' became '.join(described)}"
    # Bytes: a NaN equals itself, and 0 is not -0.
    width = old.element_size()
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (old, new)]
    differs = (raw[0] != raw[1]).reshape(-1, width).any(1)
    count = int(differs.sum())
    if not count:
        return None
    if bits:
        count = int(np.bitwise_count(raw[0] ^ raw[1]).sum())
        return f"{count:,} {'weights have' if count > 1 else 'weight has'} another mask"
    picked = torch.from_numpy(differs)
    distance = (old.reshape(-1)[picked].double() - new.reshape(-1)[picked].double()).abs().max().item()
    return f"{count:,} of {old.numel():,} elements differ, by {distance:.3g} at most"


def _table(before: Path, now: Path) -> str | None:
    """The first row of a Parquet file that has another value, and the first such column in it."""
    import pyarrow.parquet as pq

    old, new = pq.read_table(before), pq.read_table(now)
    if old.schema.names != new.schema.names:
        return f"columns {', '.join(old.schema.names)} became {', '.join(new.schema.names)}"
    for field, other in zip(old.schema, new.schema, strict=True):
        if field.type != other.type:
            return f"column {field.name}: type {field.type} became {other.type}"
    rows = min(len(old), len(new))
    found = []
    for position, name in enumerate(old.schema.names):
        if (row := _first_row(old.column(position)[:rows], new.column(position)[:rows])) is not None:
            found.append((row, position, name))
    if found:
        row, position, name = min(found)
        return (
            f"row {row}, column {name}: {_became(old.column(position)[row].as_py(), new.column(position)[row].as_py())}"
        )
    if len(old) != len(new):
        return f"{len(old):,} rows became {len(new):,}; the first {rows:,} are the same"
    metadata = [
        {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (table.schema.metadata or {}).items()
        }
        for table in (old, new)
    ]
    return _entries(metadata[0], metadata[1], "metadata ")


def _first_row(old: pa.ChunkedArray, new: pa.ChunkedArray) -> int | None:
    if old.equals(new):
        return None
    pairs = enumerate(zip(old, new, strict=True))
    return next((row for row, (a, b) in pairs if repr(a.as_py()) != repr(b.as_py())), None)


def _json(before: Path, now: Path) -> str | None:
    """The first key, in the order of the earlier version, with another value."""
    old, new = (dict(_leaves(json.loads(path.read_text(encoding="utf-8")))) for path in (before, now))
    return _entries(old, new, "")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if not items:
        yield name, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def _entries(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> str | None:
    names = dict.fromkeys([*old, *new])
    differing = [name for name in names if repr(old.get(name, ...)) != repr(new.get(name, ...))]
    if not differing:
        return None
    name = differing[0]
    others = f" ({len(differing)} of {len(names)} differ)" if differing[1:] else ""
    return f"{what}{name}: {_became(old.get(name, ...), new.get(name, ...))}{others}"


def _csv(before: Path, now: Path) -> str | None:
    """The first row with another value, counted from 1 below the header, and the first such column in it."""
    with before.open(newline="", encoding="utf-8") as old, now.open(newline="", encoding="utf-8") as new:
        rows = zip_longest(csv.reader(old), csv.reader(new))
        header, other_header = next(rows, ([], []))
        if header != other_header:
            return f"columns {', '.join(header or [])} became {', '.join(other_header or [])}"
        for row, (was, is_now) in enumerate(rows, 1):
            if was is None or is_now is None:
                return f"row {row} {'is new' if was is None else 'is missing'}"
            for column, (a, b) in enumerate(zip_longest(was, is_now)):
                if a != b:
                    name = header[column] if column < len(header) else column + 1
                    return f"row {row}, column {name}: {a or ABSENT} became {b or ABSENT}"
    return None


_FORMATS: dict[str, Callable[[Path, Path], str | None]] = {
    ".safetensors": _tensors,
    ".parquet": _table,
    ".json": _json,
    ".csv": _csv,
}


def _became(old: Any, new: Any) -> str:
    return " became ".join(ABSENT if value is ... else _shown(value) for value in (old, new))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _first_byte(before: Path, now: Path) -> str:
    sizes = [path.stat().st_size for path in (before, now)]
    place = min(sizes)
    with before.open("rb") as old, now.open("rb") as new:
        for start in range(0, min(sizes), CHUNK):
            a, b = old.read(CHUNK), new.read(CHUNK)
            if a != b:
                place = start + next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
                )
                break
    grown = f"; {sizes[0]:,} bytes became {sizes[1]:,}" if sizes[0] != sizes[1] else ""
    return f"byte {place:,} is the first that differs{grown}"


def _same_bytes(before: Path, now: Path) -> bool:
    if not (before.is_file() and now.is_file()) or before.stat().st_size != now.stat().st_size:
        return False
    with before.open("rb") as old, now.open("rb") as new:
        while chunk := old.read(CHUNK):
            if chunk != new.read(CHUNK):
                return False
    return True


def _files(top: Path) -> Iterator[Path]:
    return (path for path in top.rglob("*") if path.is_file())
