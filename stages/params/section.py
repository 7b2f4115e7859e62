"""What every section of params.yaml is made of."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_IN_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""Where DVC's links lead if its cache is shared, and of type symlink."""
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
MOST = 10**9
"""Of what is counted: beyond it, libraries fail in ways of their own."""
Workers = Annotated[int, Field(ge=1, le=1024)]
"""Threads or processes: libraries fail in ways of their own at many more."""
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def _countable(number: int) -> int:
    if number > MOST:
        raise ValueError(f"must be at most {MOST}")
    return number


Positive = Annotated[int, Field(ge=1), AfterValidator(_countable)]


def _short(sparsity: float | int) -> float | int:
    """A level's key has its sparsity as YAML and Python write it, and `1e-05` would read as part of a name."""
    if "e" in repr(sparsity):
        raise ValueError("must be 0 or at least 0.0001")
    return sparsity


def _inside(place: str) -> str:
    """A relative path is of this project; what is elsewhere has to be meant, since a clone would not have it."""
    if Path(os.path.normpath(place)).parts[:1] == (os.pardir,):
        raise ValueError("leaves the project: write the absolute path if it is meant")
    if leads_out(Path(place)):
        raise ValueError("is a link that leaves the project: write the absolute path if it is meant")
    return place


def leads_out(path: Path) -> bool:
    """Whether a relative path is, or goes through, a link that leads out of the project, and not into a DVC cache."""
    real = os.path.realpath(path)
    inside = Path(real).is_relative_to(os.path.realpath(os.curdir))
    return not (inside or path.is_absolute() or _IN_CACHE.search(real))


def _on_the_hub(hub: str) -> str:
    """`datasets` prefers a local folder of that name, and takes `csv` for the files around it: DVC sees neither."""
    name = re.split("[@:]", hub, maxsplit=1)[0]
    owner_and_name = re.fullmatch(r"([\w.-]+)/([\w.-]+)", name, re.ASCII)
    named = owner_and_name is not None and all(part.strip(".") for part in owner_and_name.groups())
    if not named or os.path.lexists(name):
        raise ValueError("must be owner/name on the Hugging Face hub, and no local file or folder (use data.path)")
    return hub


Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    if len(set(items)) != len(items):
        raise ValueError("names an item twice")
    return items


Distinct = Annotated[list[Item], AfterValidator(_distinct)]
"""A list that names nothing twice."""
Place = Annotated[str, AfterValidator(_inside)]
"""A file or folder, or an id of a hub."""
HubId = Annotated[str, AfterValidator(_on_the_hub)]
"""A dataset's id, `owner/name[:configuration][@revision]`, that is not also the name of something local."""
Sparsity = Annotated[float | int, Field(ge=0, lt=1), AfterValidator(_short)]


class Section(BaseModel):
    """A part of params.yaml: every key is required, an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)
