"""Training that holds sparsity, lets it grow on a schedule, or prepares weights for it by a penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from stages.pruning import masks as masking
from stages.pruning.masks import Masks

Score = Callable[[], dict[str, Tensor]]


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
        score: Score,
        scope: Literal["global", "layer"],
    ) -> None:
        """Set up for one training run.

        Args:
            weights: eligible matrices by name.
            masks: to begin with, of every eligible weight; True is kept.
            plan: {training step: sparsity at which masks are chosen anew before it}.
            score: importance of every eligible weight as it is now.
            scope: of the choice.
        """
        self.weights = weights
        self.masks = masks
        self._plan = dict(plan)
        self._score = score
        self._scope = scope

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply the first masks."""
        self._refresh(state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Zero what the optimizer revived."""
        masking.apply(self.weights, self.masks)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune further if the next step is one of the plan's."""
        if state.global_step < state.max_steps:
            self._refresh(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Put the sparsity on the loss curve."""
        logs["sparsity"] = masking.sparsity(self.masks)
        state.log_history[-1]["sparsity"] = logs["sparsity"]

    def _refresh(self, step: int) -> None:
        if step in self._plan:
            scores = self._score()
            # What is pruned ranks below everything else, also where its score is not the lowest.
            ranked = {name: score.masked_fill(~self.masks[name], -torch.inf) for name, score in scores.items()}
            self.masks = masking.select(ranked, self._plan[step], self._scope)
        masking.apply(self.weights, self.masks)


class Shrink(TrainerCallback):
    """Applies a penalty to the eligible weights after each optimizer step, at the step's learning rate."""

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        shrink: Callable[[Tensor, float, float], None],
        strength: float,
    ) -> None:
        """Set up for one training run; `shrink(weight, rate, strength)` changes a weight in place."""
        self._weights = weights
        self._shrink = shrink
        self._strength = strength

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        """Shrink. The scheduler has not moved yet, so this is the rate the optimizer has just used."""
        rate = float(optimizer.param_groups[0]["lr"])
        for weight in self._weights.values():
            self._shrink(weight, rate, self._strength)
