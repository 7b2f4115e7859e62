"""The cleaned text pairs that every later stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError
from stages.files import remedy


@dataclass(frozen=True)
class Pairs:
    """Inputs and the text each should become; an input may occur several times, with other targets."""

    sources: list[str]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.sources)


def read_pairs(path: Path) -> Pairs:
    """Read one split that the clean stage wrote.

    Raises:
        UserError: the file is missing, damaged, or has no rows.
    """
    try:
        table = pq.read_table(path, columns=["source", "target"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro clean`, or `dvc pull` to fetch it") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy(path)}") from None
    if not table.num_rows:
        raise UserError(f"{path} has no rows: see outputs/data/rejected.parquet for what cleaning dropped, and why")
    return Pairs(table["source"].to_pylist(), table["target"].to_pylist())
