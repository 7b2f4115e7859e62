"""Parts of the section `finetune`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.params.section import NonNegative, PositiveFloat, Section, Share


class Distillation(Section):
    """Learning from the dense baseline."""

    weight: Share
    temperature: PositiveFloat
    hidden_weight: NonNegative

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything to learn from it."""
        return self.weight > 0 or self.hidden_weight > 0


class Lora(Section):
    """Low-rank adapters of the eligible matrices, trained in place of all weights."""

    rank: Annotated[int, Field(ge=0)]
    alpha: PositiveFloat
