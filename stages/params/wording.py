"""What a mistake in params.yaml is called: the key, what is there, and what may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""pydantic's types of the error, each of which says one bound."""


def describe(model: type[BaseModel], values: Any, error: Mapping[str, Any]) -> str:
    """One mistake, in words.

    Args:
        model: what the values were checked by.
        values: the parsed params.
        error: one of pydantic's `errors()`.
    """
    keys: list[str] = []
    for part in error["loc"]:
        # A union adds the name of the alternative it tried; only real keys and indices are shown.
        if isinstance(values, dict) and (part in values or error["type"] == "missing"):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif error["type"] != "missing":
            continue
        key = str(part)
        keys.append(key if key.isprintable() else repr(key))  # one line, whatever YAML takes for a key
    name = ".".join(keys) or "params"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a known key: {_known(model, keys)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "too_short":  # pydantic's own message ends in how many there are
        message = f"must have at least {error['ctx']['min_length']}"
    if error["type"] in OUT_OF_RANGE:
        message = _range(_constraints(_field(model, keys))) or message
    return f"{name}: {message}" + ("" if isinstance(values, dict) else f", not {values!r}")


def _known(model: type[BaseModel], keys: Sequence[str]) -> str:
    """Which keys an unknown one may have been meant to be."""
    *parents, unknown = keys
    section = _field(model, parents).annotation if parents else model
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return "see the comments in params.yaml"
    known = list(section.model_fields)
    if near := get_close_matches(unknown.lower(), known, n=2):
        return f"did you mean {' or '.join('.'.join((*parents, name)) for name in near)}?"
    where = ".".join(parents) or "params.yaml"
    return f"{where} has {', '.join(known) or 'no keys'}"


def _field(model: type[BaseModel], keys: Sequence[str]) -> FieldInfo:
    """The field of the innermost section that keys lead to; what is inside a list or dict is the field's own."""
    field = FieldInfo(annotation=model)
    for key in keys:
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            break
        field = section.model_fields[key]
    return field


def _constraints(field: FieldInfo) -> Iterator[Any]:
    """The bounds of a field, of its items or of its alternatives."""
    yield from field.metadata
    pending = [field.annotation]
    while pending:
        for argument in get_args(pending.pop()):
            if isinstance(argument, FieldInfo):
                yield from argument.metadata
            else:
                pending.append(argument)


def _range(constraints: Iterator[Any]) -> str | None:
    """All bounds in one; None if there is no one range."""
    found = list(constraints)
    low = [bound for bound in found if isinstance(bound, Gt | Ge)]
    high = [bound for bound in found if isinstance(bound, Lt | Le)]
    if len(low) > 1 or len(high) > 1 or not (low or high):
        return None
    if not high:
        return f"must be {'above' if isinstance(low[0], Gt) else 'at least'} {_bound(low[0])}"
    if not low:
        return f"must be {'below' if isinstance(high[0], Lt) else 'at most'} {_bound(high[0])}"
    opening, closing = "(" if isinstance(low[0], Gt) else "[", ")" if isinstance(high[0], Lt) else "]"
    return f"must be in {opening}{_bound(low[0])}, {_bound(high[0])}{closing}"


def _bound(constraint: Any) -> str:
    value = next(value for name in ("gt", "ge", "lt", "le") if (value := getattr(constraint, name, None)) is not None)
    return str(int(value) if value == int(value) else value)
