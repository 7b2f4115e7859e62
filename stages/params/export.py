"""Params of the export stage."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import field_validator

from stages.errors import UserError
from stages.layout import CHOSEN, DENSE, Level
from stages.params.prune import Method
from stages.params.section import Distinct, Section

Format = Literal["safetensors", "onnx", "onnx-int8", "ctranslate2", "ctranslate2-int8"]


class Export(Section):
    """Which level is exported, and for what."""

    level: str
    formats: Distinct[Format]

    @field_validator("level")
    @classmethod
    def _is_a_level(cls, name: str) -> str:
        try:
            known = name in (CHOSEN, DENSE) or Level.parse(name).method in get_args(Method)
        except UserError:
            known = False
        if not known:
            raise ValueError(f"is neither {CHOSEN}, {DENSE} nor a level such as magnitude-0.5")
        return name
