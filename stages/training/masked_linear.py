"""The layer that low-rank adapters under masks are made of. Importing it imports peft, which takes a second."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor


class MaskedLinear(Linear):
    """A linear layer whose adapter changes only the weights that are kept."""

    pruned: Tensor
    """Of the weight's shape, True where it is masked."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the weight, in training and when it is merged."""
        return super().get_delta_weight(adapter).masked_fill(self.pruned, 0.0)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer with the adapted weight."""
        layer = self.get_base_layer()
        weight = layer.weight if self.merged else layer.weight + self.get_delta_weight(self.active_adapters[0])
        return torch.func.functional_call(layer, {"weight": weight}, (x,))
