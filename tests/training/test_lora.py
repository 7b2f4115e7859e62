"""Adapters: what is trained is what is merged, and zeros stay zeros."""

from __future__ import annotations

import pytest
import torch
from shared import FAMILIES, SOURCES, TARGETS

from stages.errors import UserError
from stages.models import anatomy
from stages.params import Lora
from stages.pruning import criterion, engine, masks
from stages.training.lora import adapted
from stages.training.masked_linear import MaskedLinear

KNOBS = Lora(rank=2, alpha=4.0)


def _pruned(generator, settings):
    described = anatomy.describe(generator.model)
    context = criterion.Context(generator.model, described.matrices, list, 0, None)
    chosen = engine.choose(context, criterion.find("magnitude"), 0.5, settings().prune)
    masks.apply(described.weights, chosen)
    return described, chosen


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_as_trained_and_as_sparse_as_before(family, build_family, settings):
    generator = build_family(family)
    model = generator.model.eval()  # without dropout
    described, chosen = _pruned(generator, settings)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = generator.collate(generator.encode(SOURCES, TARGETS))
    dense = model(**batch).logits.detach()

    with adapted(model, described.matrices, chosen, KNOBS):
        torch.testing.assert_close(model(**batch).logits, dense, atol=1e-5, rtol=0)  # B is zero to begin with
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert learning and all("lora_" in name for name in learning)
        assert len([m for m in model.modules() if isinstance(m, MaskedLinear)]) == len(described.matrices)
        optimizer = torch.optim.AdamW(learning.values(), lr=0.05)
        for _ in range(3):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = model(**batch).logits.detach()

    assert not any(isinstance(module, MaskedLinear) for module in model.modules())
    torch.testing.assert_close(model(**batch).logits, trained, atol=1e-5, rtol=0)
    assert (trained - dense).abs().max() > 1e-3
    masks.check_held(described.weights, chosen)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in trainable)
        assert torch.equal(parameter, before[name]) != (name in described.matrices), name


def test_rank_0_is_off(build_family, settings):
    generator = build_family("bert")
    described, chosen = _pruned(generator, settings)
    with adapted(generator.model, described.matrices, chosen, Lora(rank=0, alpha=4.0)):
        assert all(parameter.requires_grad for parameter in generator.model.parameters())


def test_shared_sides_are_refused(build_family, settings):
    generator = build_family("bert", share_weights=True)
    described, chosen = _pruned(generator, settings)
    with (
        pytest.raises(UserError, match=r"finetune.lora .* share"),
        adapted(generator.model, described.matrices, chosen, KNOBS),
    ):
        pass


def test_masks_have_to_be_fixed(settings):
    with pytest.raises(UserError, match=r"finetune.*lora .* one_shot"):
        settings(finetune={"lora": {"rank": 4}, "schedule": "cubic"})
    settings(finetune={"lora": {"rank": 4}, "schedule": "one_shot"})
