"""Readers of JSON Lines and of JSON arrays, without holding a whole file in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ftfy.fixes import fix_surrogates

from stages.errors import UserError
from stages.text.rows import Columns, Row, read_chunks, read_lines

# Numbers stay as they are written, such as 1.10. NaN is no JSON, but many tools write it for a missing value.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
_SPACE = " \t\r\n"


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


def _rows(path: Path, columns: Columns, objects: Iterator[dict[str, Any]]) -> Iterator[Row]:
    first = next(objects, None)
    if first is None:
        raise UserError(f"{path} is empty: expected objects with the columns {', '.join(columns.names())}")
    missing = set(columns.names())
    for value in chain([first], objects):
        # A column may be left out of an object, as many writers do with empty ones, but not out of all.
        if missing:
            missing -= value.keys()
        split = value.get(columns.split) if columns.split else None
        yield Row(
            _cell(value.get(columns.source)),
            _cell(value.get(columns.target)),
            split if split is None else str(split),
        )
    if missing:
        columns.positions(first, str(path))


def _cell(value: object) -> object:
    return fix_surrogates(value) if isinstance(value, str) else value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
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
            raise UserError(f"{path}, line {number}: expected an object, found {line.strip():.40}")
        yield value


def _array(path: Path) -> Iterator[dict[str, Any]]:
    text = _Buffer(read_chunks(path))
    text.expect("[")
    if text.peek() == "]":
        return
    number = 1
    while True:
        if text.peek() != "{":
            raise UserError(f"{path}: element {number} of the array is not an object")
        try:
            yield text.take_value()
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: element {number} of the array is broken ({error.msg})") from None
        if text.peek() == "]":
            return
        if not text.expect(","):
            raise UserError(f"{path}: expected a comma or ']' after element {number} of the array")
        number += 1


class _Buffer:
    """The unread part of a text that arrives in chunks."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = iter(chunks)
        self._text = ""
        self._at = 0

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

    def take_value(self) -> Any:
        """Decode the value that is next, asking for more text until it is whole."""
        while True:
            try:
                value, self._at = _decoder.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError:
                if not self._more():
                    raise

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._text, self._at = self._text[self._at :] + chunk, 0
        return True
