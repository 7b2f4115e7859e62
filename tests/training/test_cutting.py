"""Rounds of removal and training."""

from __future__ import annotations

import math

import pytest
import torch
from shared import SOURCES, TARGETS

from stages.models import anatomy
from stages.pruning.structure.axes import describe
from stages.pruning.structure.plan import Plan
from stages.training.checkpoints import Checkpoints
from stages.training.cutting import Round, cut_and_train, rounds


def knobs(settings, **changes):
    return settings(finetune={"batch_size": 2, "gradient_accumulation": 1, **changes}).finetune


def test_rounds_take_the_steps_of_the_control_and_end_at_the_target(settings):
    assert rounds(knobs(settings, schedule="one_shot"), 0.6, 20) == [Round(0.6, 20)]
    equal = rounds(knobs(settings, schedule="rounds", rounds=3), 0.6, 20)
    assert [part.steps for part in equal] == [6, 7, 7]
    assert [part.sparsity for part in equal] == pytest.approx([0.2, 0.4, 0.6])
    curve = rounds(knobs(settings, schedule="cubic", rounds=3, ramp=0.6), 0.6, 20)
    assert [part.steps for part in curve] == [4, 4, 12]
    assert [part.sparsity for part in curve] == pytest.approx([0.6 * (1 - (2 / 3) ** 3), 0.6 * (1 - 1 / 27), 0.6])
    assert sum(part.steps for part in rounds(knobs(settings, schedule="cubic", rounds=9), 0.5, 2)) == 2


def test_a_model_gets_smaller_from_round_to_round(build_family, settings, tmp_path):
    generator = build_family("bert")
    before = {name: tensor.clone() for name, tensor in generator.model.state_dict().items()}
    examples = generator.encode(SOURCES * 3, TARGETS * 3)
    seen, steps = [], []

    def choose(smaller, share):
        seen.append((anatomy.describe(smaller.model).eligible, share))
        structure = describe(smaller.model)
        if len(seen) == 1:
            return Plan({"encoder": (0, 1), "decoder": (1,)})
        return Plan(
            {"encoder": (0, 1), "decoder": (0,)},
            {"decoder.0.neurons": tuple(range(structure.axes["decoder.0.neurons"].units // 2))},
        )

    cut = cut_and_train(
        generator,
        examples,
        examples,
        [Round(0.3, 2), Round(0.5, 5)],
        choose,
        knobs(settings, schedule="rounds", rounds=2),
        settings().runtime,
        tmp_path / "scratch",
        callbacks=lambda done: steps.append(done) or [],
        teacher=None,
        checkpoints=Checkpoints("test", 0),
    )
    assert [share for _, share in seen] == [0.7, 0.5] and seen[1][0] < seen[0][0]
    assert steps == [0, 2] and cut.outcome.steps == 7
    assert cut.outcome.curve[-1]["step"] == 7
    assert [point["step"] for point in cut.outcome.curve] == sorted(point["step"] for point in cut.outcome.curve)
    sparsities = [point["sparsity"] for point in cut.outcome.curve]
    left = anatomy.describe(cut.generator.model)
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == pytest.approx(1 - left.eligible / seen[0][0])
    assert cut.generator.model.config.decoder.intermediate_size == 16
    assert set(cut.names.values()) == set(left.matrices)
    kept = "decoder.bert.encoder.layer.1.intermediate.dense.weight"
    assert cut.names[kept] == kept.replace("layer.1", "layer.0")
    assert not any("decoder.bert.encoder.layer.0" in name for name in cut.names)
    assert math.isfinite(cut.outcome.validation_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.model.state_dict().items())
