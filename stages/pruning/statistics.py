"""What is known of the inputs that reach a matrix, gathered over calibration texts. Padding never counts."""

from __future__ import annotations

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

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.squares = torch.zeros(inputs, device=device)

    def add(self, inputs: Tensor) -> None:
        """See `Statistic`."""
        self.tokens += len(inputs)
        self.squares += inputs.square().sum(dim=0)

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

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.products = torch.zeros(inputs, inputs, device=device)

    def add(self, inputs: Tensor) -> None:
        """See `Statistic`."""
        self.tokens += len(inputs)
        self.products.addmm_(inputs.T, inputs)
