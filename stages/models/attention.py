"""Which attention kernel a block of code computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

LONGEST_EAGER = 256
"""Tokens up to which the plain formula is the faster one. Measured, one thread, bf16, forward and backward of torch
2.13's kernel against the formula: 7.2 ms against 0.9 ms at 24 tokens, 44 against 19 at 128, 121 against 143 at 512."""


@contextmanager
def trained_fast(model: PreTrainedModel, longest: int, *, bf16: bool) -> Iterator[None]:
    """For the block, compute attention by the plain formula where that is faster than torch's fused kernel.

    That is on a CPU in bf16, where the backward pass of the fused kernel takes half of a training step of short
    texts. In fp32 the two are equally fast on short texts, and the fused one needs less memory on long ones.

    Args:
        model: to switch; it has its own kernel again afterwards.
        longest: tokens of the longest sequence it will see.
        bf16: whether the block computes in bf16.
    """
    plain = bf16 and model.device.type == "cpu" and longest <= LONGEST_EAGER
    with eager(model) if plain else nullcontext():
        yield


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """For the block, compute attention by the plain formula, which has second derivatives; fused kernels have none."""
    # `model.set_attn_implementation` does not reach parts with a copy of the config, as T5's stacks have one.
    found = [getattr(part, "config", None) for part in model.modules()]
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
