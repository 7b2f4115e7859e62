"""How sparsity grows during fine-tuning."""

from __future__ import annotations

import math

from stages.params import Finetune


def plan(finetune: Finetune, target: float, total_steps: int) -> dict[int, float]:
    """When masks are chosen anew, and at which sparsity: {training step they precede: sparsity}.

    - `one_shot`, or nothing to prune: never; the masks of the prune stage hold from the first step.
    - `rounds`: R equal rounds of prune, then train; the r-th prunes to target*r/R.
    - `cubic`: every `refresh_steps`, s(t) = target * (1 - (1 - t/ramp)^3) of the share t of steps done, and the
      target at the end of the ramp (Zhu and Gupta 2017, equation 1, from a sparsity of zero).

    Steps count from 0. At least one step trains the final masks.
    """
    if finetune.schedule == "one_shot" or not target:
        return {}
    if finetune.schedule == "rounds":
        starts = round_starts(finetune, total_steps)
        return {start: target * (r + 1) / len(starts) for r, start in enumerate(starts)}
    last = min(math.ceil(finetune.ramp * total_steps), total_steps - 1)
    steps = range(finetune.refresh_steps, last, finetune.refresh_steps)
    return {step: target * (1 - (1 - step / last) ** 3) for step in steps} | {last: target}


def round_starts(finetune: Finetune, total_steps: int) -> list[int]:
    """First steps of the rounds of schedule `rounds`; other schedules are one round."""
    rounds = min(finetune.rounds, total_steps) if finetune.schedule == "rounds" else 1
    return [total_steps * r // rounds for r in range(rounds)]
