"""Generators whose outputs tell a right runtime from a wrong one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stages.models.checkpoint import Generator


@pytest.fixture
def restless(build_family: Callable[..., Generator]) -> Callable[[str], Generator]:
    """Random weights large enough that outputs differ from text to text and step to step."""

    def make(family: str) -> Generator:
        generator = build_family(family)
        torch.manual_seed(1)
        for parameter in generator.model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:
                nn.init.normal_(parameter, std=0.4)
        generator.model.eval()
        return generator

    return make
