"""Learning rates over more than one round of training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler


def restarting(
    optimizer: Optimizer, name: str, starts: Sequence[int], total_steps: int, warmup_ratio: float
) -> LambdaLR:
    """A learning rate that goes through its whole schedule in each round, warm-up included.

    Args:
        optimizer: whose rate it is.
        name: of the schedule, as transformers has it.
        starts: first steps of the rounds, from 0 on.
        total_steps: of all rounds.
        warmup_ratio: share of a round's steps.
    """
    factors = [
        _factor(name, round(warmup_ratio * (end - start)), end - start)
        for start, end in zip(starts, [*starts[1:], total_steps], strict=True)
    ]

    def factor(step: int) -> float:
        index = bisect_right(starts, step) - 1
        return factors[index](step - starts[index])

    return LambdaLR(optimizer, factor)


def _factor(name: str, warmup: int, steps: int) -> Any:
    """The share of the peak rate by step that a schedule of transformers' gives."""
    throwaway = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return get_scheduler(name, throwaway, num_warmup_steps=warmup, num_training_steps=steps).lr_lambdas[0]
