"""Heads and neurons that hand nothing on are left out of graphs: the same tokens from fewer weights."""

from __future__ import annotations

import copy

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages.models import anatomy
from stages.pruning import criterion, engine, masks
from stages.pruning.structure.compact import compact
from stages.runtimes import folder as runtimes


@pytest.fixture
def sparse(restless, settings):
    """A generator that has lost half of its heads and neurons, other numbers of them in each layer."""

    def get(family: str):
        generator = copy.deepcopy(restless(family))
        matrices = anatomy.describe(generator.model).matrices
        context = criterion.Context(generator.model, matrices, list, 0, settings().prune.random)
        rules = settings(prune={"pattern": "units"}).prune
        masks.apply(context.weights, engine.choose(context, criterion.find("random"), 0.5, rules))
        return generator

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_stay(family, sparse, tmp_path):
    generator = sparse(family)
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    smaller = copy.deepcopy(generator.model)
    zero = sum(int((w == 0).sum()) for w in anatomy.describe(smaller).weights.values())
    assert compact(smaller) >= zero > 0
    with torch.no_grad():  # in double precision, in which sums of other lengths differ by less than what is asked
        expected = copy.deepcopy(generator.model).double()(**batch).logits
        logits = copy.deepcopy(smaller).double()(**batch).logits
        torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    assert compact(smaller) == 0
    texts = {"max_new_tokens": 8}
    runtimes.save(generator, tmp_path / "onnx", "onnx", source=family, leave_out=compact)
    runtimes.save(generator, tmp_path / "whole", "onnx", source=family)
    saved = runtimes.size_bytes(tmp_path / "whole") - runtimes.size_bytes(tmp_path / "onnx")
    assert saved >= 3 * zero  # bytes; layers of one shape share constants, which these no longer do
    graphs = runtimes.load(tmp_path / "onnx").model
    for beams in (1, 3):
        wanted = generator.model.generate(**generator.prompts(SOURCES), **texts, num_beams=beams).tolist()
        assert graphs.generate(**generator.prompts(SOURCES), **texts, num_beams=beams).tolist() == wanted


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_of_t5_may_lose_a_head_of_its_cross_attention_alone(layer, restless, tmp_path):
    """Its first layer hands the others a bias with a value for each head."""
    generator = copy.deepcopy(restless("t5"))
    attention = generator.model.decoder.block[layer].layer[1].EncDecAttention
    with torch.no_grad():
        attention.o.weight[:, : attention.key_value_proj_dim] = 0
    wanted = generator.model.generate(**generator.prompts(SOURCES), max_new_tokens=8).tolist()
    runtimes.save(generator, tmp_path / "onnx", "onnx", source="t5", leave_out=compact)
    graphs = runtimes.load(tmp_path / "onnx").model
    assert graphs.generate(**generator.prompts(SOURCES), max_new_tokens=8).tolist() == wanted


def test_a_layer_that_hands_nothing_on_keeps_a_unit(restless):
    generator = copy.deepcopy(restless("bart"))
    with torch.no_grad():
        for name, weight in anatomy.describe(generator.model).weights.items():
            if "fc2" in name or "out_proj" in name:
                weight.zero_()
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    with torch.no_grad():
        expected = generator.model(**batch).logits
        assert compact(generator.model) > 0
        torch.testing.assert_close(generator.model(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert all(layer.fc1.out_features == 1 for layer in generator.model.model.encoder.layers)


def test_a_model_whose_sides_share_their_weights_stays_as_it_is(build_family):
    generator = build_family("bert", share_weights=True)
    before = {name: tensor.shape for name, tensor in generator.model.state_dict().items()}
    assert compact(generator.model) == 0
    assert {name: tensor.shape for name, tensor in generator.model.state_dict().items()} == before
