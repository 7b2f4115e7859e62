"""Fixtures of all rooms: validated params, and small generators made by the real builder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from shared import ROOT, SOURCES, TARGETS, family_section, merge

from stages import params

SHARED = ("finished", "searched", "swept")
"""Fixtures of a session that take minutes, or that several files use."""
LONG = ("training", "runtimes")
"""Rooms with files that take minutes, which would keep one worker busy when the others have ended."""


def pytest_configure() -> None:
    """Before anything heavy is imported."""
    os.environ["ESPALIER_TRACKING"] = "off"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # A shell without job control starts what it puts in the background with Ctrl-C ignored, and children inherit
    # that; the tests of Ctrl-C need it to mean something.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadgroup`: tests of a file stay together, and so do those of the pipeline that is run once.

    The pipeline takes half the time of all tests, so it comes first, and what else there is goes beside it: what
    takes longest, then the rest.
    """
    for item in items:
        group = next((name for name in SHARED if name in getattr(item, "fixturenames", ())), item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    items.sort(key=lambda item: "finished" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def default_values() -> dict[str, Any]:
    """The parsed params.yaml of the project."""
    return params.read_yaml(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def settings(default_values: dict[str, Any]) -> Callable[..., params.Params]:
    """Validated params: the project's, with nested changes."""

    def make(**changes: Any) -> params.Params:
        base = merge(default_values, {"runtime": {"threads": 1, "precision": "fp32"}})
        return params.validate(merge(base, changes), "params.yaml")

    return make


@pytest.fixture
def build_family(settings: Callable[..., params.Params]) -> Callable[..., Any]:
    """`build_family(name, **changes)`: a seeded small generator of that family."""
    import torch

    from stages.models.build import build

    def make(family: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        section = merge(settings().model.model_dump(), {**family_section(family), **changes})
        model = settings(model=section).model
        return build(model, SOURCES + TARGETS)

    return make


@pytest.fixture
def restless(build_family: Callable[..., Any]) -> Callable[[str], Any]:
    """`restless(family)`: random weights large enough that outputs differ from text to text and step to step."""
    import torch

    def make(family: str) -> Any:
        generator = build_family(family)
        torch.manual_seed(1)
        for parameter in generator.model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.4)
        generator.model.eval()
        return generator

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield
