"""Params of the benchmark stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from stages.params.section import Positive, Section


class Benchmark(Section):
    """How latency and throughput are measured."""

    rounds: Annotated[int, Field(ge=3)]
    batch_sizes: Annotated[list[Positive], Field(min_length=1)]
    num_beams: Annotated[list[Positive], Field(min_length=1)]
    tokens: Positive

    @field_validator("batch_sizes", "num_beams")
    @classmethod
    def _distinct(cls, values: list[int]) -> list[int]:
        if len(set(values)) != len(values):
            raise ValueError("names an item twice")
        return values
