"""What a reader yields, and opening files so that every failure names the file and line."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from stages.errors import UserError

_CHUNK_BYTES = 1 << 20


class Columns(NamedTuple):
    """Names of the columns to read; `split` is None where the data has no such column."""

    source: str
    target: str
    split: str | None

    def positions(self, header: Iterable[str], origin: str) -> list[int]:
        """Where the named columns are in `header`, in the order source, target, split.

        Raises:
            UserError: a column is missing or there twice.
        """
        found = list(header)
        for name in self.names():
            if found.count(name) != 1:
                has = ", ".join(map(repr, found)) or "none"
                problem = f"has {found.count(name)} columns" if name in found else "has no column"
                raise UserError(
                    f"{origin} {problem} {name!r}, its columns are {has}: "
                    "set data.source, data.target and data.split in params.yaml to names among them"
                )
        return [found.index(name) for name in self.names()]

    def names(self) -> list[str]:
        """The names that are set."""
        return [name for name in self if name is not None]


class NotText(NamedTuple):
    """A cell that is a JSON list, object or boolean."""

    written: str
    """Its JSON as it stands in the file."""


class Row(NamedTuple):
    """One row as read.

    A cell is None where it is empty. Of a malformed row (one with too few or too many cells) only the text of the
    whole line is known; it stands in `source`.
    """

    source: str | NotText | None
    target: str | NotText | None
    split: str | None = None
    malformed: bool = False


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, each with its line end, ungzipped if the name ends in .gz.

    Only a line feed ends a line: a text may hold U+2028 or a form feed. A byte order mark is dropped.

    Raises:
        UserError: the file cannot be read, or is not UTF-8; names the line.
    """
    number = 0
    try:
        with _reading(path) as file:
            for number, line in enumerate(file, 1):
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError:
        raise _not_utf8(path, number) from None


def read_chunks(path: Path) -> Iterator[str]:
    """Text of a UTF-8 file in pieces of bounded size, for files that are one long line.

    Raises:
        UserError: as `read_lines`.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    chunk = b""
    try:
        with _reading(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                text = decoder.decode(chunk)
                line += text.count("\n")
                yield text
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line + chunk[: error.start].count(b"\n")) from None


def read_bytes(path: Path) -> bytes:
    """The whole of a file, ungzipped if its name ends in .gz.

    Raises:
        UserError: the file cannot be read.
    """
    with _reading(path) as file:
        return file.read()


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): fetch or compress it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def no_rows(split: str, *origins: str) -> UserError:
    """The error of a ready-made split that is there, and empty: to make up for it in silence would hide a mistake."""
    return UserError(f"no rows for {split} in {' and '.join(origins)}: add some, or leave the split out")


def _not_utf8(path: Path, line: int) -> UserError:
    return UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8 (for example with iconv)")
