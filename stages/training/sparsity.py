"""Training that holds sparsity, lets it grow on a schedule, or prepares weights for it by a penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from stages.bitmasks import Masks

Choose = Callable[[float, Masks], Masks]
"""Chooses masks of that sparsity among the weights as they are now; those that are pruned stay so."""


class HoldMasks(TrainerCallback):
    """Keeps masked weights at zero, and chooses masks anew where the schedule says so.

    Masks are applied after each optimizer step: the moments of AdamW would revive a masked weight even if its
    gradient were zero. Once pruned, a weight stays pruned.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masks: Masks,
        plan: Mapping[int, float],
        choose: Choose,
    ) -> None:
        """Set up for one training run.

        Args:
            weights: eligible matrices by name.
            masks: to begin with, of every eligible weight; True is kept.
            plan: {training step: sparsity at which masks are chosen anew before it}.
            choose: chooses them.
        """
        self.weights = weights
        self._plan = dict(plan)
        self._choose = choose
        self._set(masks)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the first masks."""
        self.apply()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune further if this step is one of the plan's.

        Not when the step before it ends: a loss that is measured in between is of what was trained.
        """
        if state.global_step in self._plan:
            self._set(self._choose(self._plan[state.global_step], self.masks))
            self.apply()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Zero what the optimizer revived."""
        self.apply()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Put the sparsity on the loss curve."""
        logs["sparsity"] = self.masks.sparsity
        state.log_history[-1]["sparsity"] = logs["sparsity"]

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, for `stages.training.resuming`."""
        return {f"mask.{name}": mask for name, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the masks that `state_dict` gave; weights are as they were then."""
        self._hold(Masks({name: state[f"mask.{name}"] for name in self.weights}))

    def _set(self, masks: Masks) -> None:
        self._hold(masks)

    def _hold(self, masks: Masks) -> None:
        self.masks = masks
        # Unpacked once, not at every step.
        self._pruned = {name: ~masks[name].to(weight.device) for name, weight in self.weights.items()}

    @torch.no_grad()
    def apply(self) -> None:
        """Set masked weights to zero."""
        for name, weight in self.weights.items():
            weight.masked_fill_(self._pruned[name], 0.0)


class Shrink(TrainerCallback):
    """Applies a penalty after each optimizer step, at the step's learning rate."""

    def __init__(self, shrink: Callable[[float], None]) -> None:
        """Set up for one training run; `shrink(rate)` changes the model's weights in place."""
        self._shrink = shrink

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        """Shrink. The scheduler has not moved yet, so this is the rate the optimizer has just used."""
        self._shrink(float(optimizer.param_groups[0]["lr"]))
