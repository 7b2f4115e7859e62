"""Readers of JSON Lines and of JSON arrays, without holding a whole file in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ftfy.fixes import fix_surrogates

from stages.errors import UserError
from stages.text.rows import Columns, NotText, Row, read_chunks, read_lines

# Numbers stay as they are written, such as 1.10. NaN is no JSON, but many tools write it for a missing value.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
_SPACE = " \t\r\n"
_MAX_ELEMENT_CHARACTERS = 1 << 26
# At least as many characters as -Infinity or the surrogate pair \ud83d\ude00.
_LONGEST_TOKEN = 16


def read_json(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a file that is an array of objects, or has one object a line.

    Raises:
        UserError: broken JSON (names the line), an element that is no object, or a column no object has.
    """
    is_array = _Buffer(read_chunks(path)).peek() == "["
    return _rows(path, columns, _array(path) if is_array else _lines(path))


def read_json_lines(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a file with one object a line. Blank lines are no rows.

    Raises:
        UserError: as `read_json`.
    """
    return _rows(path, columns, _lines(path))


class _Object(NamedTuple):
    cells: dict[str, Any]
    written: str
    """The JSON text it was decoded from."""


def _rows(path: Path, columns: Columns, objects: Iterator[_Object]) -> Iterator[Row]:
    first: dict[str, Any] | None = None
    missing = set(columns.names())
    number = 1
    try:
        for found in objects:
            first = found.cells if first is None else first
            # A column may be left out of an object, as many writers do with empty ones, but not out of all.
            if missing:
                missing -= found.cells.keys()
            yield Row(_cell(found, columns.source), _cell(found, columns.target), _label(found, columns.split))
            number += 1
    except RecursionError:
        raise UserError(f"{path}, row {number}: lists or objects nested too deep to be read; leave them out") from None
    if first is None:
        raise UserError(f"{path} is empty: expected objects with the columns {', '.join(columns.names())}")
    if missing:
        columns.positions(first, str(path))


def _cell(found: _Object, name: str) -> str | NotText | None:
    cell = found.cells.get(name)
    if isinstance(cell, str):
        return fix_surrogates(cell)
    return None if cell is None else NotText(_as_written(found.written, name))


def _label(found: _Object, name: str | None) -> str | None:
    cell = None if name is None else _cell(found, name)
    return cell.written if isinstance(cell, NotText) else cell


def _as_written(text: str, name: str) -> str:
    """The JSON of the value that an object, itself given as JSON, has under `name`."""
    written, at = "", _skip_space(text, 0) + 1
    while True:
        key, at = _decoder.raw_decode(text, _skip_space(text, at))
        start = _skip_space(text, _skip_space(text, at) + 1)  # past the colon
        _, end = _decoder.raw_decode(text, start)
        if key == name:
            written = text[start:end]  # as in decoding, the last of equal keys counts
        at = _skip_space(text, end) + 1
        if text[at - 1] == "}":
            return written


def _skip_space(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _lines(path: Path) -> Iterator[_Object]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = _decoder.decode(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: {error.msg}; expected an array of objects or one object a line"
            ) from None
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number}: expected an object, found {line.strip()[:40]!r}")
        yield _Object(value, line)


def _array(path: Path) -> Iterator[_Object]:
    text = _Buffer(read_chunks(path))
    text.expect("[")
    number = 0
    while not text.expect("]"):
        if number and not text.expect(","):
            raise UserError(f"{path}, line {text.line()}: expected a comma or ']' after element {number} of the array")
        number += 1
        if text.peek() != "{":
            raise UserError(f"{path}, line {text.line()}: element {number} of the array is not an object")
        try:
            yield text.take_object()
        except json.JSONDecodeError as error:
            place = f"{path}, line {text.line(error.pos)}"
            raise UserError(f"{place}: element {number} of the array is broken ({error.msg})") from None
    if found := text.peek():
        raise UserError(
            f"{path}, line {text.line()}: expected the end of the file after the array, found {found!r}; "
            "write one array of objects, or one object a line"
        )


class _Buffer:
    """The unread part of a text that arrives in chunks."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = iter(chunks)
        self._text = ""
        self._at = 0
        self._lines_dropped = 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> bool:
        """Pass over `character` if it is next."""
        found = self.peek() == character
        self._at += found
        return found

    def take_object(self) -> _Object:
        """Decode the object that is next, asking for more text until it is whole.

        Raises:
            json.JSONDecodeError: it is broken, or longer than `_MAX_ELEMENT_CHARACTERS`.
        """
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut_short(error):
                    raise
                if len(self._text) - self._at > _MAX_ELEMENT_CHARACTERS:
                    message = f"no end within {_MAX_ELEMENT_CHARACTERS:,} characters"
                    raise json.JSONDecodeError(message, self._text, self._at) from None
                if not self._more():
                    raise
            else:
                start, self._at = self._at, end
                return _Object(value, self._text[start:end])

    def line(self, at: int | None = None) -> int:
        """Number of the line of a position in the unread text; of the next character without one."""
        return 1 + self._lines_dropped + self._text.count("\n", 0, self._at if at is None else at)

    def _may_be_cut_short(self, error: json.JSONDecodeError) -> bool:
        """Whether the rest of the text may mend this: it ends within a string, or within the token at fault."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN

    def _more(self) -> bool:
        """Add at least as much text as is unread, so that a long object is decoded again only a few times."""
        unread = self._text[self._at :]
        added, characters = [], 0
        for chunk in self._chunks:
            added.append(chunk)
            characters += len(chunk)
            if characters >= max(len(unread), 1):
                break
        if not added:
            return False
        self._lines_dropped += self._text.count("\n", 0, self._at)
        self._text, self._at = "".join([unread, *added]), 0
        return True
