"""Movement pruning: scores and frozen weights by hand, then through the Trainer: exact, held, and weights come back."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from shared import SMALL, SOURCES, TARGETS
from torch import nn

from stages.bitmasks import Masks
from stages.errors import UserError
from stages.models import anatomy
from stages.models.anatomy import Matrix
from stages.pruning import criterion, engine, masks, schedules
from stages.pruning.criteria import movement
from stages.training import calibration
from stages.training.loop import train
from stages.training.movement import LearnMasks


def test_scores_add_up_by_hand_and_hidden_weights_come_back():
    """loss = v . w', so that the gradient of the masked weight is v, whatever the mask."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    chosen = []

    def choose(sparsity: float, scores: Any) -> Masks:
        chosen.append(scores["w"].clone())
        return Masks({"w": scores["w"] > scores["w"].min()})

    holder = LearnMasks({"w": weight}, masks.keep_all({"w": weight}), {1: 1 / 3, 2: 1 / 3}, choose, movement.learn)
    holder.on_train_begin(None, types.SimpleNamespace(global_step=0), None)
    holder.on_step_begin(None, types.SimpleNamespace(global_step=0), None)
    for done, gradient in enumerate(([1.0, 1.0, 0.0], [-9.0, 0.0, 1.0], [1.0, 1.0, 1.0])):
        state = types.SimpleNamespace(global_step=done, max_steps=3)
        weight.grad = torch.tensor([gradient])
        holder.on_pre_optimizer_step(None, state, None)
        with torch.no_grad():
            weight -= 0.5 * weight.grad + 0.01  # an optimizer whose momentum moves every weight
        holder.on_optimizer_step(None, state, None)
        state.global_step += 1
        holder.on_step_begin(None, state, None)
        masks.check_held({"w": weight}, holder.masks)
        if done == 0:
            # S = -w*g = (-1, 2, 0): the first goes, at 1 - 0.5 - 0.01.
            assert chosen[0].tolist() == [[-1.0, 2.0, 0.0]]
            torch.testing.assert_close(weight.detach(), torch.tensor([[0.0, -2.51, 2.99]]))
        if done == 1:
            # The first is scored by what it was, 0.49: -1 + 9 * 0.49 = 3.41; the third moves towards zero, -2.99.
            torch.testing.assert_close(chosen[1], torch.tensor([[3.41, 2.0, -2.99]]))
            # It comes back as it was: neither gradient nor momentum moved it. Now the third is at zero.
            torch.testing.assert_close(weight.detach(), torch.tensor([[0.49, -2.52, 0.0]]))
    # Masks are fixed by now: the last step trains, and chooses nothing.
    assert len(chosen) == 2 and holder.masks["w"].tolist() == [[True, True, False]]
    torch.testing.assert_close(weight.detach(), torch.tensor([[-0.02, -3.03, 0.0]]))


class Line(nn.Module):
    """loss = x . w: the gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5, 4.0]]))

    def forward(self, x: torch.Tensor) -> Any:
        return types.SimpleNamespace(loss=(x * self.weight).sum())


def test_the_prune_stage_scores_one_step_by_hand():
    model = Line()
    matrix = Matrix("weight", model.weight, transposed=False, role="unknown", side="decoder", block="")
    batches = [{"x": torch.tensor([[1.0, 1.0, -4.0, 1.0]])}, {"x": torch.tensor([[3.0, 1.0, -4.0, -1.0]])}]
    context = criterion.Context(model, {"weight": matrix}, lambda: batches, 0, types.SimpleNamespace(floor=0.0))
    # Gradients (2, 1, -4, 0) on average. Signs count, and cancel: Taylor's |w*g| would have the last one first.
    importance = criterion.find("movement").importance
    assert importance(context)["weight"].tolist() == [[-2.0, 2.0, 2.0, 0.0]]
    learnt = {"weight": torch.tensor([[4.0, 3.0, 2.0, 1.0]])}
    assert importance(replace(context, learnt=learnt))["weight"].tolist() == learnt["weight"].tolist()


class Watch(LearnMasks):
    """Keeps the masks of every step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        masks.check_held(self.weights, self.masks)
        self.history = [*getattr(self, "history", []), self.masks]


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("variant", ["soft", "hard"])
def test_masks_are_learnt_exact_and_held(family, variant, build_family, settings, tmp_path):
    generator = build_family(family)
    knobs = {"variant": variant, "floor": 0.1}
    section = {"schedule": "cubic", "refresh_steps": 2, "batch_size": 8, "gradient_accumulation": 1, "epochs": 5.0}
    made = settings(prune={"movement": knobs}, finetune={**section, "learning_rate": 0.01})
    examples = generator.encode(SOURCES * 8, TARGETS * 8)
    matrices = anatomy.describe(generator.model).matrices
    batches = calibration.sample(generator, SOURCES, TARGETS, made.prune.calibration, 0)
    context = criterion.Context(generator.model, matrices, batches, 0, made.prune.movement)
    plan = schedules.plan(made.finetune, 0.7, 20)

    def choose(sparsity: float, scores: Any) -> Masks:
        return engine.choose(replace(context, learnt=scores), movement.CRITERION, sparsity, made.prune)

    torch.manual_seed(7)
    holder = Watch(context.weights, masks.keep_all(context.weights), plan, choose, movement.learn)
    train(generator, examples, examples[:4], made.finetune, made.runtime, tmp_path / "s", callbacks=[holder])
    masks.check_held(context.weights, holder.masks)
    assert holder.masks.pruned == round(0.7 * holder.masks.numel)
    kept = {name: float(mask.float().mean()) for name, mask in holder.masks.items()}
    assert min(kept.values()) >= 0.1
    assert (max(kept.values()) - min(kept.values()) < 0.01) == (variant == "hard")
    steps = list(zip(holder.history, holder.history[1:], strict=False))
    back = [sum(int((~a[name] & b[name]).sum()) for name in a) for a, b in steps]
    assert sum(back) > 0 and sum(back[max(plan) :]) == 0


def test_layers_that_a_step_drops_are_scored_by_the_others(build_family, settings, tmp_path):
    """BART's layerdrop: of a block that a step leaves out, weights have no gradient, and at first no score."""
    generator = build_family("bart", config={**SMALL["bart"], "encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9})
    section = {"schedule": "cubic", "refresh_steps": 1, "batch_size": 8, "gradient_accumulation": 1, "epochs": 3.0}
    made = settings(finetune=section)
    examples = generator.encode(SOURCES * 4, TARGETS * 4)
    matrices = anatomy.describe(generator.model).matrices
    context = criterion.Context(generator.model, matrices, list, 0, made.prune.movement)
    asked = []

    def choose(sparsity: float, scores: Any) -> Masks:
        asked.append({name for name, score in scores.items() if score.any()})
        return engine.choose(replace(context, learnt=scores), movement.CRITERION, sparsity, made.prune)

    plan = schedules.plan(made.finetune, 0.5, 6)
    holder = LearnMasks(context.weights, masks.keep_all(context.weights), plan, choose, movement.learn)
    train(generator, examples, examples[:4], made.finetune, made.runtime, tmp_path / "s", callbacks=[holder])
    assert asked[0] < set(matrices), "some had no gradient by the first choice"
    assert holder.masks.pruned == round(0.5 * holder.masks.numel)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"schedule": "one_shot"}}, "one_shot holds masks that are chosen before: set finetune.schedule"),
        ({"finetune": {"schedule": "rounds"}}, "rounds holds masks that are chosen before"),
        ({"sweep": {"method": ["movement"], "sparsity": [0.999]}}, "floor keeps 0.005 of each matrix"),
    ],
)
def test_what_movement_cannot_do_is_refused(changes, message, settings):
    with pytest.raises(UserError, match=message):
        settings(**{"sweep": {"method": ["movement"]}, **changes})
