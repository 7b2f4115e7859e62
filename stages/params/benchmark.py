"""Params of the benchmark stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.params.section import Distinct, Positive, Section


class Benchmark(Section):
    """How latency and throughput are measured."""

    rounds: Annotated[int, Field(ge=3)]
    throughput_rounds: Annotated[int, Field(ge=3)]
    batch_sizes: Annotated[Distinct[Positive], Field(min_length=1)]
    num_beams: Annotated[Distinct[Positive], Field(min_length=1)]
    tokens: Positive
