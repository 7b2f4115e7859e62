"""Training a model that gets smaller: parts are removed before it, or between rounds of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from stages.bitmasks import Masks
from stages.models import anatomy
from stages.models.checkpoint import Generator
from stages.params import Finetune, Runtime
from stages.pruning.masks import check_held, keep_all
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan
from stages.pruning.structure.removal import names_after, shrink
from stages.pruning.structure.states import Counterparts, follow
from stages.training.checkpoints import Checkpoints
from stages.training.loop import Examples, Outcome, total_steps, train
from stages.training.lora import adapted
from stages.training.sparsity import HoldMasks

if TYPE_CHECKING:
    from stages.training.distillation import Teacher

Choose = Callable[[Generator, float], Plan]
"""The plan that leaves a generator so much of what the dense model costs."""
Zeros = Callable[[Generator, Mapping[str, str], float], Masks]
"""Masks of a smaller generator, whose matrices are named by those of the dense one, so far on its way to the target."""


@dataclass(frozen=True)
class Round:
    """What is removed at once, and how long is trained then."""

    sparsity: float
    """Of the model, in the unit of its budget."""
    steps: int
    progress: float = 1.0
    """Towards the target."""


@dataclass(frozen=True)
class Cut:
    """What became of a generator."""

    generator: Generator
    outcome: Outcome
    names: Mapping[str, str]
    """What is left of the dense model's eligible matrices: the name of each there, and its name now."""
    masks: Masks | None = None
    """Of what is zero in it, which is proved."""


def rounds(finetune: Finetune, target: float, steps: int) -> list[Round]:
    """When what is removed.

    - `one_shot`: all, before training.
    - `rounds`: equal parts, before each of as many rounds of equal length.
    - `cubic`: before each round a part by Zhu and Gupta's curve, within the ramp; the last round goes on to the end.

    Each is a training of its own, with the optimizer and its learning rate as at the start: moments of a larger model
    mean nothing to a smaller one. All of them together take as many steps as the dense control.
    """
    count = 1 if finetune.schedule == "one_shot" else min(finetune.rounds, steps)
    if finetune.schedule == "cubic":
        last = max(count, math.ceil(finetune.ramp * steps))
        starts = [last * r // count for r in range(count)]
        shares = [1 - (1 - (r + 1) / count) ** 3 for r in range(count)]
    else:
        starts = [steps * r // count for r in range(count)]
        shares = [(r + 1) / count for r in range(count)]
    ends = [*starts[1:], steps]
    return [Round(target * share, end - start, share) for share, start, end in zip(shares, starts, ends, strict=True)]


def cut_and_train(
    generator: Generator,
    examples: Examples,
    validation: Examples,
    parts: Sequence[Round],
    choose: Choose,
    finetune: Finetune,
    runtime: Runtime,
    scratch: Path,
    *,
    callbacks: Callable[[int], Sequence[TrainerCallback]],
    teacher: Teacher | None,
    checkpoints: Checkpoints,
    zeros: Zeros | None = None,
) -> Cut:
    """Remove and train, round after round.

    Args:
        generator: the dense one, which is left as it is.
        examples: of `Generator.encode`, to train on.
        validation: likewise, to measure the loss on.
        parts: of `rounds`.
        choose: chooses what stays.
        finetune: knobs of each round's training; its steps are those of the round.
        runtime: seed and precision. Each round draws its batches anew.
        scratch: folder for checkpoints.
        callbacks: more Trainer callbacks of a round that begins after so many steps.
        teacher: what to learn from besides the examples.
        checkpoints: to keep, of each round its own, and to go on from. A run that goes on does all rounds again, each
            from its last checkpoint.
        zeros: chooses what is zero of what is left, at the start of each round, and held in it; None: nothing.

    Raises:
        UserError: no structure is as small as that, or the loss is not finite.
    """
    eligible = anatomy.describe(generator.model).eligible
    names = {name: name for name in anatomy.describe(generator.model).matrices}
    outcomes: list[Outcome] = []
    counterparts: Counterparts | None = None
    for index, part in enumerate(parts):
        plan = choose(generator, 1 - part.sparsity)
        renamed = names_after(describe(generator.model), plan)
        names = {dense: renamed[name] for dense, name in names.items() if name in renamed}
        smaller = shrink(generator, plan, counterparts.factor if counterparts else 1.0)
        counterparts = follow(generator, plan, counterparts)
        if teacher:
            teacher.follow(counterparts)
        generator = smaller
        described = anatomy.describe(generator.model)
        masks = zeros(generator, names, part.progress) if zeros else keep_all(described.weights)
        held = [HoldMasks(described.weights, masks, {}, _as_they_are)] if zeros else []
        with adapted(generator.model, described.matrices, masks, finetune.lora):
            outcome = train(
                generator,
                examples,
                validation,
                finetune.model_copy(update={"epochs": _epochs(len(examples), part.steps, finetune)}),
                runtime.model_copy(update={"seed": runtime.seed + index}),
                scratch / str(index),
                callbacks=[
                    *held,
                    _OnCurve(1 - (described.eligible - masks.pruned) / eligible),
                    *callbacks(sum(done.steps for done in outcomes)),
                ],
                teacher=teacher,
                checkpoints=replace(
                    checkpoints,
                    name=f"{checkpoints.name}/round-{index}",
                    inputs=(*checkpoints.inputs, repr(plan)),
                ),
            )
        check_held(described.weights, masks)
        outcomes.append(outcome)
    return Cut(generator, _joined(outcomes), names, masks if zeros else None)


def _as_they_are(sparsity: float, masks: Masks) -> Masks:
    return masks


def _epochs(examples: int, steps: int, finetune: Finetune) -> float:
    """As many as take exactly so many steps, by `total_steps`."""
    return (steps - 0.5) / total_steps(examples, finetune.model_copy(update={"epochs": 1.0}))


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Rounds as one training: steps and epochs count on."""
    curve: list[dict[str, float]] = []
    steps, epochs = 0, 0.0
    for outcome in outcomes:
        for point in outcome.curve:
            curve.append({**point, "step": point["step"] + steps, "epoch": point["epoch"] + epochs})
        steps, epochs = steps + outcome.steps, epochs + outcome.epochs
    return replace(outcomes[-1], steps=steps, epochs=epochs, curve=curve)


class _OnCurve(TrainerCallback):
    """Puts the sparsity on the loss curve."""

    def __init__(self, sparsity: float) -> None:
        self._sparsity = sparsity

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        logs["sparsity"] = self._sparsity
        state.log_history[-1]["sparsity"] = self._sparsity
