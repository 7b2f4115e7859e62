"""Distillation: a level also learns what the dense baseline, its teacher, takes for likely.

    (1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student) + hidden_weight * squared difference of states

KL is of the next-token distributions at temperature T; T^2 keeps its gradient's size as T changes (Hinton, Vinyals and
Dean 2015, Distilling the Knowledge in a Neural Network, section 2). Hidden states are compared block by block, of a
smaller student with the blocks and dimensions that it has kept of the teacher (`pruning.structure.states`; Jiao et al.
2020, TinyBERT, equation 8, without its projection). All three are means over the target tokens of an optimizer step; an
encoder's states count as many times as their text has target tokens, each source token alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.models.checkpoint import IGNORED, Generator
from stages.models.likelihood import aligned
from stages.params import Distillation
from stages.pruning.structure.states import Counterparts


class Teacher:
    """The dense baseline, asked about every training batch."""

    def __init__(self, generator: Generator, settings: Distillation) -> None:
        """Set up with a generator that is left as it is."""
        self._model: Any = generator.model.eval()
        self._causal = generator.kind == "causal"
        self._settings = settings
        self._counterparts: Counterparts | None = None

    def follow(self, counterparts: Counterparts) -> None:
        """Have a student that parts have been removed of."""
        self._counterparts = counterparts

    def ask(self, batch: Mapping[str, Tensor], precision: AbstractContextManager[Any]) -> dict[str, Any]:
        """Compute and keep the teacher's answer.

        Args:
            batch: of training, with labels.
            precision: what the student computes in.

        Returns:
            What the student is to be given, so that it can be compared.
        """
        inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
        inputs["output_hidden_states"] = self._settings.hidden_weight > 0
        with torch.no_grad(), precision:
            self._answer = self._model(**inputs, use_cache=False)
        self._sources = batch["attention_mask"]
        return {**inputs, "labels": batch["labels"]}

    def loss(self, cross_entropy: Tensor, outputs: Any, labels: Tensor) -> Tensor:
        """What the student learns from, summed over the batch's target tokens.

        Args:
            cross_entropy: of the student, summed likewise.
            outputs: of the student, on the batch that was last asked about.
            labels: of that batch.
        """
        knobs = self._settings
        total = (1 - knobs.weight) * cross_entropy
        if knobs.weight:
            total = total + knobs.weight * knobs.temperature**2 * self._divergence(outputs.logits, labels)
        if knobs.hidden_weight:
            total = total + knobs.hidden_weight * self._distance(outputs, labels)
        return total

    def _divergence(self, logits: Tensor, labels: Tensor) -> Tensor:
        """KL(teacher || student) at the temperature, in nats."""
        student, counted = aligned(logits, labels != IGNORED, causal=self._causal)
        teacher, _ = aligned(self._answer.logits, labels, causal=self._causal)
        ours, theirs = (
            functional.log_softmax(of[counted].float() / self._settings.temperature, dim=-1)
            for of in (student, teacher)
        )
        return functional.kl_div(ours, theirs, log_target=True, reduction="sum")

    def _distance(self, outputs: Any, labels: Tensor) -> Tensor:
        """Squared differences of the blocks' outputs: means over the student's width and blocks."""
        targets = labels != IGNORED
        if self._causal:
            # The state at position t predicts token t + 1.
            counted = {"hidden_states": functional.pad(targets[:, 1:], (0, 1))}
        else:
            share = targets.sum(dim=1, keepdim=True) / self._sources.sum(dim=1, keepdim=True)
            counted = {"decoder_hidden_states": targets, "encoder_hidden_states": self._sources * share}
        distances = [
            ((ours.float() - theirs.float()).square().mean(dim=-1) * times).sum()
            for side, times in counted.items()
            for ours, theirs in zip(outputs[side][1:], self._states(side), strict=True)
        ]
        return torch.stack(distances).mean()

    def _states(self, name: str) -> Sequence[Tensor]:
        """The outputs that the student's blocks are to be like, of those with that name in the answer."""
        states: Sequence[Tensor] = self._answer[name][1:]
        if self._counterparts is None:
            return states
        return self._counterparts.of("encoder" if name.startswith("encoder") else "decoder", states)
