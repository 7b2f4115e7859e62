"""Rewinding: rates by hand, weights back to what they were, masks held all the while."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared import SOURCES, TARGETS
from transformers import TrainerCallback

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models import anatomy
from stages.pruning import criterion, engine, masks, schedules
from stages.training.learning_rate import restarting
from stages.training.loop import train
from stages.training.rewinding import Rewind
from stages.training.sparsity import HoldMasks


def test_each_round_has_the_whole_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = restarting(optimizer, "linear", [0, 4], 10, warmup_ratio=0.5)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # Two steps of warm-up, two of decay; then three and three.
    assert rates == pytest.approx([0, 0.1, 0.2, 0.1, 0, 0.2 / 3, 0.4 / 3, 0.2, 0.4 / 3, 0.2 / 3])


class Watch(TrainerCallback):
    """Keeps the rate of every step, and the weights and moments with which each begins."""

    def __init__(self, weights: Any, optimizers: Any = None) -> None:
        self.weights, self.rates, self.seen, self.fresh = weights, [], [], []
        self.evaluated: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        self.seen.append({name: weight.detach().clone() for name, weight in self.weights.items()})
        self.fresh.append(not optimizer.state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append({name: weight.detach().clone() for name, weight in self.weights.items()})

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("rewind", ["none", "learning_rate", "weights"])
def test_rounds_rewind(rewind, build_family, settings, tmp_path):
    generator = build_family("bert")
    section = {"schedule": "rounds", "rounds": 3, "rewind": rewind, "warmup_ratio": 0.0, "epochs": 3.0}
    made = settings(finetune={**section, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 0.01})
    described = anatomy.describe(generator.model)
    context = criterion.Context(generator.model, described.matrices, list, 0, made.prune.magnitude)

    def choose(sparsity: float, held: Masks) -> Masks:
        return engine.choose(context, criterion.find("magnitude"), sparsity, made.prune, held=held)

    before = {name: weight.detach().clone() for name, weight in described.weights.items()}
    holder = HoldMasks(
        described.weights, masks.keep_all(described.weights), schedules.plan(made.finetune, 0.6, 9), choose
    )
    starts = schedules.round_starts(made.finetune, 9)
    rewinds = rewind != "none"
    watch = Watch(described.weights)
    rewinding = [Rewind(generator.model, holder, starts, weights=rewind == "weights")] if rewinds else []
    examples = generator.encode(SOURCES * 6, TARGETS * 6)
    train(
        generator,
        examples,
        examples[:4],
        made.finetune,
        made.runtime,
        tmp_path,
        callbacks=[holder, *rewinding, watch],
        starts=starts if rewinds else (0,),
    )
    masks.check_held(described.weights, holder.masks)
    assert holder.masks.pruned == round(0.6 * holder.masks.numel)
    assert starts == [0, 3, 6] and len(watch.rates) == 9
    third = [0.01, 0.02 / 3, 0.01 / 3]
    assert watch.rates == pytest.approx(third * 3 if rewinds else [0.01 * (9 - step) / 9 for step in range(9)])
    assert watch.fresh == [step == 0 or (rewinds and step in starts) for step in range(9)]
    # A round is an epoch here: its loss is of what it trained, before the next prunes and rewinds.
    zeros = [sum(int((weight == 0).sum()) for weight in weights.values()) for weights in watch.evaluated]
    assert zeros == [round(share * holder.masks.numel) for share in (0.2, 0.4, 0.6)]
    assert not any(
        torch.equal(weights[name], old * (weights[name] != 0))
        for weights in watch.evaluated
        for name, old in before.items()
    )
    for step, weights in enumerate(watch.seen):
        kept = [weights[name][weights[name] != 0] for name in weights]
        old = [before[name][weights[name] != 0] for name in weights]
        same = all(torch.equal(a, b) for a, b in zip(kept, old, strict=True))
        assert same == (step == 0 or (rewind == "weights" and step in starts))


def test_only_rounds_can_be_rewound(settings):
    with pytest.raises(UserError, match=r"finetune: rewind weights .* set schedule to rounds"):
        settings(finetune={"schedule": "cubic", "rewind": "weights"})
