"""Small generators that a module's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MILLISECONDS = {
    "reply": 2.0,
    "head": 30.0,
    "encoder_layers": 1.0,
    "encoder_attention": 100.0,
    "encoder_feed_forward": 200.0,
    "decoder_layers": 4.0,
    "decoder_attention": 500.0,
    "decoder_feed_forward": 1000.0,
}


@pytest.fixture
def latency_table() -> Callable[..., dict[str, Any]]:
    """`latency_table(model, **milliseconds)`: params `prune.structured.latency`, as if measured of a model."""

    def make(model: Any, **milliseconds: float) -> dict[str, Any]:
        from stages.pruning.structure.axes import describe
        from stages.pruning.structure.latency import sizes

        structure = describe(model)
        known = {part: ms for part, ms in MILLISECONDS.items() if part.partition("_")[0] != "encoder"}
        known = MILLISECONDS if "encoder" in structure.stacks else known
        table = {"device": "a test", "threads": 1, "source_tokens": 5.0, "target_tokens": 7, "baseline_ms": 20.0}
        return {**table, "sizes": sizes(model, structure), "milliseconds": {**known, **milliseconds}}

    return make


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
