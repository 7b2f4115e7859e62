"""Scores of units by hand, and against what masking and autograd say of the same units."""

from __future__ import annotations

import copy

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages.errors import UserError
from stages.models import anatomy
from stages.models.likelihood import aligned
from stages.pruning.criterion import Context
from stages.pruning.structure import scores
from stages.pruning.structure.axes import describe
from stages.pruning.structure.masking import masked
from stages.pruning.structure.plan import Plan, whole


@pytest.fixture
def context(built, settings):
    def get(family: str, batches: int = 1) -> Context:
        generator = copy.deepcopy(built(family))
        generator.model.eval()
        batch = generator.collate(generator.encode(SOURCES, TARGETS))
        matrices = anatomy.describe(generator.model).matrices
        return Context(generator.model, matrices, lambda: [batch] * batches, 0, settings().prune.structured)

    return get


@pytest.mark.parametrize("score", scores.UNITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_axis_of_every_family_has_scores(family, score, context):
    looked_at = context(family)
    before = {name: p.detach().clone() for name, p in looked_at.model.named_parameters()}
    structure = describe(looked_at.model)
    found = scores.units(looked_at, structure, score)
    for axis in structure.axes.values():
        assert found[axis.name].shape == (axis.units,)
        assert bool((found[axis.name] >= 0).all()) and bool(found[axis.name].any())
    assert all(torch.equal(p, before[name]) for name, p in looked_at.model.named_parameters())
    assert all(p.grad is None for p in looked_at.model.parameters())


def test_the_norm_of_a_neuron_is_that_of_its_row_bias_and_column(context):
    looked_at = context("bert")
    block = looked_at.model.encoder.encoder.layer[0]
    row, bias, column = block.intermediate.dense.weight[3], block.intermediate.dense.bias[3], block.output.dense.weight
    by_hand = (row.square().sum() + bias.square() + column[:, 3].square().sum()).sqrt()
    found = scores.norm(looked_at, describe(looked_at.model))["encoder.0.neurons"]
    assert found[3].item() == pytest.approx(by_hand.item(), rel=1e-6)


def exact_loss(context: Context) -> float:
    """In double precision, which the loss of transformers is not."""
    model = context.model
    batch = next(iter(context.batches()))
    logits, labels = aligned(model(**batch).logits, batch["labels"], causal=not model.config.is_encoder_decoder)
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "llama"])
def test_a_gate_has_the_derivative_of_the_loss(family, context):
    """Against the difference quotient of scaling what a neuron hands on."""
    looked_at = context(family)
    looked_at.model.double()
    structure = describe(looked_at.model)
    axis = next(axis for axis in structure.axes.values() if axis.kind == "neurons" and axis.side == "decoder")
    found = scores.gate(looked_at, structure)[axis.name]
    reader = next(m for m in looked_at.matrices.values() if (d := structure.read(m)[1]) and d.axis == axis.name)
    for unit in found.topk(2).indices.tolist():
        column = reader.oriented(reader.weight)[:, unit]
        losses = []
        for scale in (1.001, 0.999 / 1.001):
            with torch.no_grad():
                column.mul_(scale)
                losses.append(exact_loss(looked_at))
        with torch.no_grad():
            column.mul_(1 / 0.999)
        assert found[unit].item() == pytest.approx(abs(losses[0] - losses[1]) / 0.002, rel=0.02)


def test_within_a_unit_effects_cancel_between_batches_they_do_not(context):
    looked_at = context("bert")
    structure = describe(looked_at.model)
    net, gross = scores.taylor(looked_at, structure), scores.taylor_sum(looked_at, structure)
    assert all(bool((net[name] <= gross[name] * (1 + 1e-5) + 1e-9).all()) for name in net)
    twice = scores.taylor(context("bert", batches=2), structure)
    assert all(torch.allclose(twice[name], net[name], rtol=1e-4, atol=1e-8) for name in net)


def test_a_unit_that_does_nothing_scores_nothing(context):
    looked_at = context("bart")
    structure = describe(looked_at.model)
    layer = looked_at.model.model.decoder.layers[1]
    with torch.no_grad():
        layer.fc2.weight[:, 7] = 0
        layer.fc1.weight[7] = 0
        layer.fc1.bias[7] = 0
    for score in ("norm", "taylor", "taylor_sum", "gate", "activation"):
        found = scores.units(looked_at, structure, score)["decoder.1.neurons"]
        assert int(found.argmin()) == 7 and found[7] == 0


def test_activations_leave_padding_out(context, built):
    """The same texts with more padding score the same."""
    looked_at = context("bert")
    generator = built("bert")
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    wider = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 9), value=generator.tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 9)),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 7), value=-100),
    }
    structure = describe(looked_at.model)
    padded = Context(looked_at.model, looked_at.matrices, lambda: [wider], 0, looked_at.settings)
    narrow, wide = scores.activation(looked_at, structure), scores.activation(padded, structure)
    assert all(torch.allclose(narrow[name], wide[name], rtol=1e-4) for name in narrow)


@pytest.mark.parametrize("family", ["bert", "bart", "t5", "gpt2", "llama"])
def test_layers_go_by_the_loss_without_them(family, context):
    looked_at = context(family)
    structure = describe(looked_at.model)
    blocks = whole(structure).layers
    losses = {}
    for block in blocks["decoder"]:
        others = tuple(b for b in blocks["decoder"] if b != block)
        with masked(looked_at.model, Plan({**blocks, "decoder": others}), structure):
            losses[block] = scores.mean_loss(looked_at)
    kept = scores.layers_by_loss(looked_at, structure, {"decoder": 1})
    assert set(blocks["decoder"]) - set(kept["decoder"]) == {min(losses, key=losses.__getitem__)}
    assert kept.get("encoder") == blocks.get("encoder")


def test_a_layer_that_hands_on_what_it_reads_goes_first(context):
    looked_at = context("llama")
    block = looked_at.model.model.layers[0]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    kept = scores.layers_by_output(looked_at, describe(looked_at.model), {"decoder": 1})
    assert kept["decoder"] == (1,)


def test_without_calibration_texts(context):
    looked_at = context("bert")
    empty = Context(looked_at.model, looked_at.matrices, list, 0, looked_at.settings)
    for score in ("taylor", "gate", "activation"):
        with pytest.raises(UserError, match="no calibration examples"):
            scores.units(empty, describe(looked_at.model), score)


def test_a_diverged_model_is_named(context):
    looked_at = context("bert")
    with torch.no_grad():
        looked_at.model.encoder.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        scores.units(looked_at, describe(looked_at.model), "taylor")
