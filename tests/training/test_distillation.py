"""Distillation: the loss by hand, padding left out, the same whatever the batches, on every shape of generator."""

from __future__ import annotations

import copy
import math
import types
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from shared import SMALL, SOURCES, TARGETS

from stages.pruning.structure.states import Counterparts
from stages.training.distillation import Teacher
from stages.training.loop import train

IGNORED = -100


def knobs(settings: Any, **changes: Any) -> Any:
    values = {"weight": 0.0, "temperature": 1.0, "hidden_weight": 0.0, **changes}
    return settings(finetune={"distillation": values}).finetune.distillation


def asked(answer: Any, distillation: Any, kind: str, batch: dict[str, torch.Tensor]) -> Teacher:
    """A teacher that gives that answer."""
    model = types.SimpleNamespace(eval=lambda: lambda **inputs: answer)
    teacher = Teacher(types.SimpleNamespace(model=model, kind=kind), distillation)
    teacher.ask(batch, nullcontext())
    return teacher


def states(**tensors: Any) -> Any:
    """Outputs that can be read both ways, as those of transformers."""
    return type("Outputs", (dict,), {"__getattr__": dict.__getitem__})(tensors)


@pytest.mark.parametrize(("temperature", "scale"), [(1.0, 1.0), (2.0, 4.0)])
def test_divergence_by_hand(temperature, scale, settings):
    # At the temperature, the student says (1/2, 1/2) and the teacher (3/4, 1/4).
    student = states(logits=torch.tensor([[[0.0, 0.0], [5.0, 1.0]]]))
    answer = states(logits=torch.tensor([[[temperature * math.log(3), 0.0], [7.0, 0.0]]]))
    labels = torch.tensor([[1, IGNORED]])
    batch = {"labels": labels, "attention_mask": torch.ones(1, 3)}
    distillation = knobs(settings, weight=0.25, temperature=temperature)
    loss = asked(answer, distillation, "seq2seq", batch).loss(torch.tensor(8.0), student, labels)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(loss) == pytest.approx(0.75 * 8 + 0.25 * scale * kl)


def test_distance_by_hand(settings):
    """Blocks alike; a text's source tokens share the weight of its target tokens; embeddings are left out."""
    zeros = {"encoder_hidden_states": [torch.zeros(1, 4, 2)] * 2, "decoder_hidden_states": [torch.zeros(1, 3, 2)] * 3}
    ours = {side: [torch.full_like(layers[0], 9.0), *map(torch.clone, layers[1:])] for side, layers in zeros.items()}
    ours["encoder_hidden_states"][1][0, :, 0] = torch.tensor([1.0, 2.0, 3.0, 9.0])  # mean squares 1/2, 2, 9/2; padding
    ours["decoder_hidden_states"][2][0, :, 1] = torch.tensor([2.0, 4.0, 9.0])  # 2, 8; padding
    labels = torch.tensor([[5, 6, IGNORED]])
    batch = {"labels": labels, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    teacher = asked(states(**zeros), knobs(settings, hidden_weight=3.0), "seq2seq", batch)
    loss = teacher.loss(torch.tensor(0.0), states(**ours), labels)
    # Three blocks: (1/2 + 2 + 9/2) * 2/3 of the encoder, 0 and 2 + 8 of the decoder.
    assert float(loss) == pytest.approx(3.0 * (7 * 2 / 3 + 0 + 10) / 3)


def test_a_smaller_student_by_hand(settings):
    """Two of three decoder blocks and two of three dimensions: the first is block 1, the last is like the last."""
    answer = states(
        encoder_hidden_states=[torch.zeros(1, 1, 3), torch.tensor([[[1.0, 2.0, 3.0]]])],
        decoder_hidden_states=[torch.full((1, 1, 3), 50.0 * i) + torch.tensor([1.0, 2.0, 3.0]) for i in range(4)],
    )
    student = states(
        encoder_hidden_states=[torch.zeros(1, 1, 2), torch.tensor([[[1.0, 5.0]]])],  # 0 and 2 away from (1, 3)
        decoder_hidden_states=[
            torch.zeros(1, 1, 2),
            torch.tensor([[[102.0, 106.0]]]),  # 0 and 3 away from block 1's (102, 103)
            torch.tensor([[[77.0, 76.5]]]),  # 1 and 0 away from half of block 2's (152, 153)
        ],
    )
    labels = torch.tensor([[4]])
    batch = {"labels": labels, "attention_mask": torch.ones(1, 1)}
    teacher = asked(answer, knobs(settings, hidden_weight=1.0), "seq2seq", batch)
    sides = {"encoder": (0, 2), "decoder": (1, 2)}
    teacher.follow(Counterparts({"encoder": (0,), "decoder": (1, 1)}, sides, factor=0.5))
    loss = teacher.loss(torch.tensor(0.0), student, labels)
    assert float(loss) == pytest.approx((4 / 2 + 9 / 2 + 1 / 2) / 3)


def test_a_causal_state_counts_where_it_predicts_a_target(settings):
    zeros = {"hidden_states": [torch.zeros(1, 4, 1)] * 2, "logits": torch.zeros(1, 4, 2)}
    ours = {**zeros, "hidden_states": [zeros["hidden_states"][0], torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])]}
    labels = torch.tensor([[IGNORED, IGNORED, 1, 1]])  # predicted at positions 1 and 2
    batch = {"labels": labels, "attention_mask": torch.ones(1, 4)}
    teacher = asked(states(**zeros), knobs(settings, hidden_weight=1.0), "causal", batch)
    assert float(teacher.loss(torch.tensor(0.0), states(**ours), labels)) == 4 + 9


def fit(generator: Any, teacher: Any, settings: Any, tmp_path: Any, **finetune: Any) -> Any:
    torch.manual_seed(7)
    section = {"batch_size": 16, "gradient_accumulation": 1, "epochs": 3.0, "learning_rate": 0.003, **finetune}
    made = settings(finetune={**section, "bucket_by_length": False})
    examples = generator.encode(SOURCES * 8, TARGETS * 8)
    return train(generator, examples, examples[:4], made.finetune, made.runtime, tmp_path / "scratch", teacher=teacher)


DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}


def without_dropout(family: str) -> dict[str, Any]:
    config = {**SMALL[family], **dict.fromkeys(DROPOUTS[family], 0.0)}
    side = {"architecture": "bert", "config": config}
    return {"encoder": side, "decoder": side} if family == "bert" else {"config": config}


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_nothing_is_to_be_learnt_from_oneself(family, build_family, settings, tmp_path):
    """Before the first step, teacher and student agree: the loss is the cross-entropy's share alone."""
    curves = []
    for distillation in (None, knobs(settings, weight=0.5, temperature=2.0, hidden_weight=1.0)):
        generator = build_family(family, **without_dropout(family))
        teacher = Teacher(copy.deepcopy(generator), distillation) if distillation else None
        curves.append(fit(generator, teacher, settings, tmp_path, epochs=0.5, warmup_ratio=1.0).curve)
    plain, distilled = (curve[0]["loss"] for curve in curves)
    assert distilled == pytest.approx(plain / 2, rel=1e-4)
    assert curves[1][-1]["validation_loss"] > 0.9 * curves[0][-1]["validation_loss"], "validation is cross-entropy"


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("changes", [{"weight": 1.0}, {"weight": 1.0, "hidden_weight": 0.1}])
def test_the_student_becomes_like_its_teacher(family, changes, build_family, settings, tmp_path):
    taught = build_family(family, **without_dropout(family))
    fit(taught, None, settings, tmp_path, epochs=5.0, learning_rate=0.01)
    kept = copy.deepcopy(taught.model.state_dict())
    student = build_family(family, **without_dropout(family))
    batch = taught.collate(taught.encode(SOURCES, TARGETS))

    def divergence() -> float:
        counted = batch["labels"] != IGNORED
        with torch.no_grad():
            ours, theirs = (g.model(**batch).logits.log_softmax(-1)[counted] for g in (student, taught))
        return float(torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))

    before = divergence()
    fit(student, Teacher(taught, knobs(settings, **changes)), settings, tmp_path, epochs=5.0, learning_rate=0.01)
    assert divergence() < before / 2
    assert all(torch.equal(tensor, kept[name]) for name, tensor in taught.model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_accumulation_equals_the_larger_batch(family, build_family, settings, tmp_path):
    distillation = knobs(settings, weight=0.5, temperature=2.0, hidden_weight=1.0)
    teacher = build_family(family, **without_dropout(family))
    fit(teacher, None, settings, tmp_path)
    outcomes = [
        fit(build_family(family, **without_dropout(family)), Teacher(teacher, distillation), settings, tmp_path, **how)
        for how in ({"batch_size": 16}, {"batch_size": 8, "gradient_accumulation": 2})
    ]
    whole, summed = outcomes
    assert summed.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=1e-4)
    assert summed.validation_loss == pytest.approx(whole.validation_loss, rel=1e-3)
