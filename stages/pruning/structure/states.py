"""Hidden states of the dense model that those of a smaller one are to be like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.models.anatomy import Side
from stages.models.checkpoint import Generator
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan, whole
from stages.pruning.structure.removal import state_factor


@dataclass(frozen=True)
class Counterparts:
    """Which of the dense model's states belong to the blocks of a smaller one, and which dimensions of them.

    Width that is removed is a selection, so that what is left has the meaning it had, and needs no projection.
    """

    blocks: Mapping[Side, tuple[int, ...]]
    """By block of the smaller model: its number in the dense one."""
    width: Mapping[Side, tuple[int, ...]]
    """By dimension of its residual stream: its number in the dense one."""
    factor: float = 1.0
    """What the decoder's last state is multiplied by, in a family that scales by its width."""

    def of(self, side: Side, states: Sequence[Tensor]) -> list[Tensor]:
        """What the blocks of the smaller model should put out.

        The last block is compared with the dense model's last, whichever it was itself: what reads it, the head or
        cross-attention, expects that, and where a norm follows the blocks both have gone through it.

        Args:
            side: whose states they are.
            states: outputs of all blocks of the dense model, each [texts, tokens, width].

        Returns:
            One for each block of the smaller model, [texts, tokens, its width].
        """
        chosen = [states[block] for block in self.blocks[side][:-1]] + [states[-1]]
        kept = torch.tensor(self.width[side], device=states[-1].device)
        if len(kept) < states[-1].shape[-1]:
            chosen = [state.index_select(-1, kept) for state in chosen]
        if side == "decoder" and self.factor != 1:
            chosen[-1] = chosen[-1] * self.factor
        return chosen


def follow(generator: Generator, plan: Plan, earlier: Counterparts | None = None) -> Counterparts:
    """What belongs to what, once a plan is carried out.

    Args:
        generator: before that.
        plan: of what it keeps.
        earlier: of the generator itself, if it is a smaller one already.
    """
    structure = describe(generator.model)
    widths = {side: structure.width(side) for side in structure.stacks}
    before = earlier or Counterparts(
        whole(structure).layers, {side: tuple(range(axis.units)) for side, axis in widths.items()}
    )
    return Counterparts(
        {side: tuple(before.blocks[side][block] for block in kept) for side, kept in plan.layers.items()},
        {side: tuple(before.width[side][unit] for unit in plan.kept(axis)) for side, axis in widths.items()},
        before.factor * state_factor(generator.model, plan),
    )
