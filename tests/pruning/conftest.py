"""Small generators that a module's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def _built() -> dict[str, Any]:
    return {}


@pytest.fixture
def built(build_family: Callable[..., Any], _built: dict[str, Any]) -> Callable[[str], Any]:
    """`built(family)`: a small generator that is built once a module; copy it before changing it."""

    def get(family: str) -> Any:
        if family not in _built:
            _built[family] = build_family(family)
        return _built[family]

    return get
