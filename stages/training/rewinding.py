"""Rounds of training that begin anew (Renda, Frankle and Carbin 2020, Comparing Rewinding and Fine-tuning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from stages.training.sparsity import HoldMasks


class Rewind(TrainerCallback):
    """Lets each round begin as a training run of its own: with new moments in the optimizer, and old weights if wanted.

    Comes after the callback that chooses masks, which are chosen by the weights of the round that ends.
    """

    def __init__(self, model: nn.Module, holder: HoldMasks, starts: Sequence[int], *, weights: bool) -> None:
        """Set up for one training run.

        Args:
            model: as it is before training; kept where weights are to be rewound.
            holder: holds the masks.
            starts: first steps of the rounds.
            weights: whether all weights but the masked ones go back to what they are now.
        """
        self._holder = holder
        self._starts = set(starts) - {0}
        self._parameters = dict(model.named_parameters()) if weights else {}
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        """Rewind, if a round begins with this step."""
        if state.global_step not in self._starts:
            return
        optimizer.state.clear()
        for name, parameter in self._parameters.items():
            parameter.copy_(self._before[name])
        self._holder.apply()
