"""Training that learns which weights to mask, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.bitmasks import Masks
from stages.training.sparsity import HoldMasks

Scores = Mapping[str, Tensor]


class LearnMasks(HoldMasks):
    """Keeps masked weights at zero, learns a score for every weight, and chooses masks by it on a schedule.

    What a masked weight was is kept aside, frozen, and is what it has again if it comes back. After the last choice of
    the plan masks are fixed, and nothing more is learnt.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masks: Masks,
        plan: Mapping[int, float],
        choose: Callable[[float, Scores | None], Masks],
        learn: Callable[[Tensor, Tensor, Tensor], None],
    ) -> None:
        """Set up for one training run.

        Args:
            weights: eligible matrices by name.
            masks: to begin with.
            plan: {training step: sparsity at which masks are chosen anew before it}.
            choose: masks of a sparsity by scores, or if none have been learnt yet.
            learn: `learn(scores, weight, gradient)` changes scores in place; the weight as it is under the mask, the
                gradient that of the masked weight.
        """
        self._under = {name: weight.detach().clone() for name, weight in weights.items()}
        self._pruned = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        self._scores: dict[str, Tensor] = {}
        self._learn = learn
        super().__init__(weights, masks, plan, lambda sparsity, held: choose(sparsity, self._scores or None))

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn from the gradients, which are clipped, and those of all processes, by now."""
        if state.global_step >= max(self._plan, default=0):
            return
        for name, weight in self.weights.items():
            scores = self._scores.setdefault(name, torch.zeros_like(weight))
            if weight.grad is None:  # a layer that was dropped in this step, as BART's may be
                continue
            pruned = self._pruned[name]
            self._learn(scores, torch.where(pruned, self._under[name], weight), weight.grad)
            # The mask hides a pruned weight from the loss: only its score has a gradient.
            weight.grad.masked_fill_(pruned, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Masks, scores, and what is under the masks."""
        scores = {f"score.{name}": tensor for name, tensor in self._scores.items()}
        return super().state_dict() | scores | {f"under.{name}": tensor for name, tensor in self._under.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave."""
        super().load_state_dict(state)
        for name, tensor in self._under.items():
            tensor.copy_(state[f"under.{name}"])
        self._scores = {
            name: state[f"score.{name}"].to(weight.device)
            for name, weight in self.weights.items()
            if f"score.{name}" in state
        }

    @torch.no_grad()
    def _set(self, masks: Masks) -> None:
        for name, weight in self.weights.items():
            weight.copy_(torch.where(self._pruned[name], self._under[name], weight))
            self._under[name].copy_(weight)
        super()._set(masks)
