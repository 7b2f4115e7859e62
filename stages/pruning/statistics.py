"""What is known of the inputs that reach a matrix, gathered over calibration texts. Padding never counts."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Statistic(Protocol):
    """Sums over tokens."""

    tokens: int
    """Seen so far."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        """Start with nothing seen of so many inputs."""
        ...

    def add(self, inputs: Tensor) -> None:
        """Take in the inputs [tokens, inputs] of a batch, fp32."""
        ...


class Norms:
    """Sum of squares of every input feature."""

    TOGETHER = 256
    """Features squared at a time: squares of all take as much memory as the inputs."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.squares = torch.zeros(inputs, device=device)

    def add(self, inputs: Tensor) -> None:
        """See `Statistic`."""
        self.tokens += len(inputs)
        for sums, features in zip(self.squares.split(self.TOGETHER), inputs.split(self.TOGETHER, dim=1), strict=True):
            sums += features.square().sum(dim=0)

    @property
    def norms(self) -> Tensor:
        """L2 norm of every feature over all tokens, [inputs]."""
        return self.squares.sqrt()


class Moments(Norms):
    """Mean and variance of every input feature, besides its norm."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        super().__init__(inputs, device)
        self.sums = torch.zeros(inputs, device=device)

    def add(self, inputs: Tensor) -> None:
        """See `Statistic`."""
        super().add(inputs)
        self.sums += inputs.sum(dim=0)

    @property
    def mean(self) -> Tensor:
        """Mean of every feature, [inputs]."""
        return self.sums / self.tokens

    @property
    def variance(self) -> Tensor:
        """Variance of every feature, [inputs]; of all tokens, not an estimate from a sample of them."""
        return (self.squares / self.tokens - self.mean.square()).clamp(min=0)


class Gram:
    """Products of every two input features, summed: X^T X of the inputs X [tokens, inputs]."""

    BANDS = 8
    """Bands of rows that the matrix is summed in, each from the diagonal on: 9/16 of the work of all of it."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self._upper = torch.zeros(inputs, inputs, device=device)
        self._whole = True
        self.factor: Tensor | None = None
        """Kept by `hessian.shared_factor`."""
        self._width = max(math.ceil(inputs / self.BANDS), 64)

    def add(self, inputs: Tensor) -> None:
        """See `Statistic`."""
        self.tokens += len(inputs)
        self._whole = False
        for start in range(0, inputs.shape[1], self._width):
            band = slice(start, start + self._width)
            self._upper[band, start:].addmm_(inputs[:, band].T, inputs[:, start:])

    @property
    def products(self) -> Tensor:
        """The sums, [inputs, inputs], symmetric to the bit."""
        if not self._whole:
            for start in range(0, len(self._upper), self._width):
                stop = start + self._width
                square = self._upper[start:stop, start:stop]
                square.copy_(square.triu() + square.triu(1).T)
                self._upper[stop:, start:stop] = self._upper[start:stop, stop:].T
            self._whole = True
        return self._upper

    @cached_property
    def dead(self) -> Tensor:
        """Which inputs were never anything but zero, such as those behind a ReLU that never opens, [inputs]."""
        return self._upper.diagonal() == 0

    def free(self) -> None:
        """Keep no sums: only which inputs are dead."""
        _ = self.dead
        self._upper = self._upper.new_empty(0, 0)
